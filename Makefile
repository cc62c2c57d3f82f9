# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: install demo test test-trl test-verl test-slime lint docs warm-start release-check

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,g2p,trl,report,dev]'
	touch $@

demo: install
	$(BIN)/python examples/demo.py

# Two files of tests at a time, one for each core.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The adapter with another version of TRL, all else as pinned: make test-trl VERSION=0.29.0
test-trl: TRL := .venv-trl-$(VERSION)
test-trl:
	$(PYTHON) -m venv $(TRL)
	grep -v '^trl==' constraints.txt > $(TRL)/constraints.txt
	$(TRL)/bin/pip install --quiet --disable-pip-version-check --constraint $(TRL)/constraints.txt \
		--editable '.[train,trl,report]' trl==$(VERSION) requests pytest hypothesis
	$(TRL)/bin/python -m pytest tests/integrations tests/cli/test_train_trl.py

# The adapter for verl, in an environment of its own: 2 GB; 50 minutes on two cores that others use too.
VERL := .venv-verl
test-verl: $(VERL)/installed
	$(VERL)/bin/python -m pytest tests/integrations/verl

$(VERL)/installed: pyproject.toml
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 verl==0.9.1 \
		cachetools uvicorn fastapi TransferQueue pyzmq msgspec pytest hypothesis --editable '.[train]'
	touch $@

# The adapter for slime, in an environment of its own without GPU packages: make test-slime SLIME_SOURCE=../slime, a
# source tree of slime's (git clone https://github.com/THUDM/slime); three minutes.
SLIME := .venv-slime
test-slime: $(SLIME)/installed
	SLIME_SOURCE=$(abspath $(SLIME_SOURCE)) $(SLIME)/bin/python -m pytest tests/integrations/slime_run

$(SLIME)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SLIME)
	$(SLIME)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt ray transformers wandb \
		tensorboard httpx aiohttp pillow pylatexenc pyyaml tqdm requests numba omegaconf pytest hypothesis --editable '.[train]'
	touch $@

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Re-makes the shipped policies (two to five minutes); benchmarks/warm_start.py compares them with the shipped ones.
warm-start: install
	cd benchmarks && ../$(BIN)/python -m shipped.warm_start ../src/allotment/lab/data

# Before a release: what would be uploaded, installed where nothing is. First without torch, then the demo with its extras.
RELEASE := .venv-release
release-check:
	rm -rf dist $(RELEASE) && $(PYTHON) -m venv $(RELEASE) && $(PYTHON) -m venv $(RELEASE)/empty
	$(RELEASE)/bin/pip install --quiet --disable-pip-version-check build twine
	$(RELEASE)/bin/python -m build --outdir dist . && $(RELEASE)/bin/twine check --strict dist/*
	$(RELEASE)/empty/bin/pip install --quiet --disable-pip-version-check dist/allotment-*.whl
	cd $(RELEASE) && empty/bin/allotment --help > help.txt
	cd $(RELEASE) && empty/bin/allotment audit ../tests/cli/earlier_run/rollouts.jsonl && ! empty/bin/python -c "import torch" 2> /dev/null
	$(RELEASE)/empty/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt "$$(ls dist/allotment-*.whl)[train,report]"
	cp examples/demo.py $(RELEASE) && cd $(RELEASE) && OMP_NUM_THREADS=1 empty/bin/python demo.py
