import pytest
import torch

from allotment.lab.checkpoint import load_lab
from allotment.tasks.mixture import Mixture, load_mixture

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


@pytest.fixture(scope="module")
def small(mixture):
    """Few prompts, so that prompts come back within a few steps and embeddings are quick."""
    return Mixture(mixture.pool[::26], mixture.held_out[::40], ())


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
