"""The guides: their methods do what the pages say, their examples print it, their recipes are accepted."""

import contextlib
import io
import itertools
import re
import shlex
from argparse import Namespace

import numpy as np
import pytest
import yaml
from scipy.special import expit

from allotment import Posterior, allocate_exact
from allotment.integrations.slime import check_args
from allotment.planning import Planner
from allotment.prediction import Predictor
from allotment.pricing import Price
from allotment.registry import LOG_FORMATS, OBJECTIVES, PLANNERS, PREDICTORS, SELECTORS, TRAINERS
from pages import DOCS, titled, toys

RECIPES = titled("guides/recipes.md")
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```$", (DOCS / "guides/recipes.md").read_text(), re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A function that imports a module of the guides; what it registers is taken back."""
    folder = tmp_path_factory.mktemp("guides")
    tables = (LOG_FORMATS, OBJECTIVES, PLANNERS, PREDICTORS, SELECTORS, TRAINERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for name, text in toys().items():
            (folder / name).write_text(text)
        yield lambda name: __import__(name)
    for table in tables:
        for name in [name for name in table.names if name.startswith("toy-")]:
            table.unregister(name)


def test_every_kind_has_a_guide():
    assert {name.removeprefix("toy_").removesuffix(".py") for name in toys()} == {
        "planner", "predictor", "price", "selector", "objective", "format", "trainer",
    }  # fmt: skip


@pytest.mark.parametrize("page", sorted(DOCS.glob("guides/*.md")), ids=lambda page: page.stem)
def test_examples_print_what_the_page_shows(toy, page):
    toy("toy_price")
    blocks = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert bool(blocks) == (page.stem == "price")
    for code, shown in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, {})
        assert out.getvalue() == shown


class TestPlanner:
    def test_weights_make_up_for_the_draw(self, toy):
        """Each prompt's weight times whether it was drawn, mean over seeds, is 1: within 4 standard errors."""
        Share = toy("toy_planner").Share
        totals = np.zeros(12)
        for seed in range(2000):
            plan = Share(budget=32, share=0.25, seed=seed).ask(range(12))
            totals[list(plan.prompt_ids)] += plan.weights
        assert plan.budget == 32
        assert plan.candidates == 12
        deviation = np.sqrt((1 - 0.25) / 0.25 / 2000)
        assert np.abs(totals / 2000 - 1).max() < 4 * deviation

    def test_the_baseline_is_of_earlier_steps_and_is_saved(self, toy, tmp_path):
        Share = toy("toy_planner").Share
        planner: Planner = Share(budget=16, share=0.5)
        plan = planner.ask(range(8))
        assert set(plan.baselines) == {0.5}
        planner.tell(plan, [1.0] * 16, plan.group_ids())
        planner.save(tmp_path / "state")
        again = Share(budget=16, share=0.5).load(tmp_path / "state").ask(range(8))
        here = planner.ask(range(8))
        assert set(here.baselines) == {16.5 / 17}
        assert (here.prompt_ids, list(here.baselines)) == (again.prompt_ids, list(again.baselines))


def test_the_predictor_is_a_beta_belief_that_is_saved(toy):
    OwnCounts = toy("toy_predictor").OwnCounts
    predictor = OwnCounts()
    assert isinstance(predictor, Predictor)
    predictor.observe(["a", "b", "c"], [3, 0, 0], [4, 2, 0])
    predictor.observe(["a"], [1], [1])
    again = OwnCounts()
    again.load_state_dict(predictor.state_dict())
    for each in (predictor, again):
        belief = each.predict(["a", "b", "c", "new"])
        assert belief.success_probability() == pytest.approx([5 / 7, 1 / 4, 1 / 2, 1 / 2])


class TestPrice:
    belief = Posterior(np.array([-2.0, 0.5, 3.0]), np.array([1.0, 0.0, 4.0]))

    def test_gains_are_differences_of_costs(self, toy):
        price = toy("toy_price").NoSuccess(self.belief)
        assert isinstance(price, Price)
        grid_K = np.arange(1, 9)
        costs_QK = np.stack([price.cost(np.full(3, n)) for n in (*grid_K, 9)], axis=1)
        assert price.gains(grid_K) == pytest.approx(-np.diff(costs_QK, axis=1), abs=1e-9)
        assert costs_QK[1] == pytest.approx((1 - expit(0.5)) ** np.arange(1, 10))

    def test_the_split_is_the_best_of_all(self, toy):
        price = toy("toy_price").NoSuccess(self.belief)
        found = allocate_exact(price, budget=12, lower=1, upper=10)
        every = [counts for counts in itertools.product(range(1, 11), repeat=3) if sum(counts) == 12]
        assert found.objective == pytest.approx(min(price.cost(np.array(counts)).sum() for counts in every))

    def test_the_planner_allocates_by_it(self, toy):
        plan = toy("toy_price").MostSolved(budget=32).ask(range(4))
        assert plan.allocation.objective == pytest.approx(
            4 * toy("toy_price").NoSuccess(plan.posterior).cost(plan.counts)[0]
        )


def commands(text):
    """The words of each command of a shell block; ``\\`` at the end of a line goes on."""
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


class TestRecipes:
    @pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith(".yaml") and name != "allotment.yaml"])
    def test_trl_reads_the_file(self, name, tmp_path):
        from trl import ModelConfig, TrlParser

        from allotment.integrations.trl import AllotmentGRPOConfig

        (tmp_path / name).write_text(RECIPES[name])
        here = ["--config", str(tmp_path / name), "--output_dir", str(tmp_path / "out")]
        cpu = ["--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false"]
        parser = TrlParser((AllotmentGRPOConfig, ModelConfig))
        arguments, model, rest = parser.parse_args_and_config([*here, *cpu], return_remaining_strings=True)
        given = yaml.safe_load(RECIPES[name])
        assert rest == []
        assert model.model_name_or_path == given["model_name_or_path"]
        assert arguments.planner == "vip"
        processes = 4 if name == "multi.yaml" else 1
        assert processes * given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] == 128
        assert arguments.use_vllm == given.get("use_vllm", False)

    def test_the_script_compiles(self):
        compile(RECIPES["train.py"], "train.py", "exec")

    def test_the_launchers_take_their_flags(self):
        from accelerate.commands.launch import launch_command_parser
        from trl.scripts.vllm_serve import make_parser

        seen = set()
        for words in commands(SHELL):
            words = [word for word in words if not word.startswith("CUDA_VISIBLE_DEVICES=")]
            seen.add(words[0])
            if words[0] == "accelerate":
                found = launch_command_parser().parse_args(words[2:])
                assert found.training_script == "train.py"
                assert found.multi_gpu
            if words[0] == "trl":
                (served,) = make_parser().parse_args_into_dataclasses(words[2:])
                assert served.port == 8000
        assert seen == {"accelerate", "python", "trl"}

    @pytest.mark.parametrize("more", [{}, {"planner": "joint", "candidates": 128}])
    def test_slime_takes_the_arguments(self, more):
        (words,) = commands(RECIPES["slime.sh"])
        flags = dict(re.findall(r"--([\w-]+) ((?!--)\S+)", " ".join(words)))
        given = {name.replace("-", "_"): int(value) if value.isdigit() else value for name, value in flags.items()}
        assert given.pop("custom_config_path") == "allotment.yaml"
        block = yaml.safe_load(RECIPES["allotment.yaml"])["allotment"]
        if more:
            given["custom_pg_loss_reducer_function_path"] = "allotment.integrations.slime.sum_of_tokens"
            block = {**block, **more, "planner_kwargs": {}}
        planner = check_args(Namespace(**given, rollout_seed=0, allotment=block))
        assert planner.budget == 512
        assert planner.name == block["planner"]
