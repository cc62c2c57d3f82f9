"""The house: who may import whom, what importing costs, how much is read to understand ask and tell."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import allotment

ROOT = Path(allotment.__file__).parent
DECIDING = ("types", "errors", "checks", "disk", "packing", "state", "lazy", "registry", "prompts", "prediction",
            "pricing", "allocation", "selection", "planning")  # fmt: skip
"""Rooms that load no torch, no configuration and no trainer."""
TRAINING = ("learning", "run_logs", "integrations")
"""Rooms between a plan and a trainer's loss."""
METHODS = ("methods",)
BENCH = ("lab", "tasks", "compare", "trainers", "config", "sinks")
SHOWING = ("audit", "report")
ALLOWED = {
    **dict.fromkeys(DECIDING, DECIDING),
    **dict.fromkeys(TRAINING, (*DECIDING, *TRAINING, "audit", "methods")),
    "methods": (*DECIDING, "learning", "methods"),
    "audit": (*DECIDING, "run_logs", "audit"),
    "report": (*DECIDING, *TRAINING, *METHODS, *BENCH, *SHOWING),
    **dict.fromkeys(BENCH, (*DECIDING, *TRAINING, *METHODS, *BENCH, *SHOWING)),
    "cli": (*DECIDING, *TRAINING, *METHODS, *BENCH, *SHOWING, "cli"),
}
"""From which rooms each may import, at any level of the code; names in the registry's table are no imports."""
EXCEPTIONS = {
    ("run_logs.directory", "config"),  # a run directory holds a configuration
    ("run_logs.directory", "trainers"),
    ("integrations.verl.config", "config"),  # the block of settings is one
}
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in ROOT.rglob("*.py")}


def imported(path, *, only_at_runtime=True):
    """The modules of ours that a file imports."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if only_at_runtime and isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            skipped |= {id(child) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "allotment":
            module = node.module.partition(".")[2]
            names = [f"{module}.{alias.name}".strip(".") for alias in node.names]
            yield from (name if name in MODULES else module for name in names)


def room(module):
    return module.partition(".")[0]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    if module in ("", "__init__"):
        return
    found = {
        (module, room(name)) for name in imported(MODULES[module]) if name and room(name) not in ALLOWED[room(module)]
    }
    assert found <= EXCEPTIONS


def test_there_are_no_circles():
    """Not even by imports inside functions."""
    edges = {module: set(imported(path)) - {module, ""} for module, path in MODULES.items()}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for name in sorted(edges.get(module, ())):
            visit(name)
        done.add(path.pop())

    for module in sorted(edges):
        visit(module)


def loaded_after(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print('\\n'.join(sys.modules))"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {name for name in done.stdout.split() if name.partition(".")[0] == "allotment"}


def test_importing_loads_what_deciding_needs():
    loaded = loaded_after("import allotment")
    assert len(loaded) < 45
    assert {room(name.partition(".")[2]) for name in loaded} <= {"", *DECIDING}


def test_few_public_names():
    assert len(allotment.__all__) <= 18
    assert all(getattr(allotment, name) is not None for name in allotment.__all__)


def test_asking_and_telling_is_read_in_an_evening():
    """The files whose functions run when the default planner is asked and told."""
    planner, files = allotment.VIP(budget=64), set()
    ids = [f"p{i}" for i in range(8)]

    def watch(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            files.add(frame.f_code.co_filename)

    sys.setprofile(watch)
    try:
        for _ in range(2):
            plan = planner.ask(ids)
            groups = plan.group_ids()
            planner.tell(plan, [float(i % 2) for i in range(len(groups))], groups)
    finally:
        sys.setprofile(None)
    lines = sum(len(Path(file).read_text().splitlines()) for file in files)
    assert len(files) <= 12, sorted(files)
    assert lines <= 2500


def test_no_consumer_guesses_what_a_planner_is():
    for module, path in MODULES.items():
        if room(module) in ("integrations", "trainers", "lab", "compare", "audit", "cli", "report"):
            for call in ast.walk(ast.parse(path.read_text())):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("getattr", "hasattr"):
                    assert "planner" not in ast.unparse(call.args[0]), f"{module}: {ast.unparse(call)}"
