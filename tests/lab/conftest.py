import pytest
import torch

from allotment.lab.checkpoint import load_lab
from allotment.tasks.mixture import load_mixture

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mixture():
    return load_mixture()


@pytest.fixture(scope="session")
def shipped_labs():
    """Do not train these: they are shared by all tests."""
    return {name: load_lab(name) for name in ("scratchpad", "short")}


@pytest.fixture
def scratchpad(shipped_labs):
    return shipped_labs["scratchpad"]


@pytest.fixture
def short(shipped_labs):
    return shipped_labs["short"]
