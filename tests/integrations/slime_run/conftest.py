"""slime is a source tree that needs GPUs' packages: ``make test-slime SLIME_SOURCE=...`` (docs/slime.md)."""

import importlib
import os
import sys
import types
from pathlib import Path

import pytest

SOURCE = os.environ.get("SLIME_SOURCE", "")
HERE = Path(__file__).parent
ATTRIBUTES = {
    "sglang.srt.constants": ("GPU_MEMORY_TYPE_CUDA_GRAPH", "GPU_MEMORY_TYPE_KV_CACHE", "GPU_MEMORY_TYPE_WEIGHTS"),
    "sglang.srt.server_args": ("ServerArgs",),
    "sglang.srt.utils": ("kill_process_tree",),
    "sglang_router.launch_router": ("RouterArgs",),
    "megatron.core": ("mpu",),
}
"""What of the packages that need a GPU is imported on the way; nothing of it runs, but ``mpu`` of a single process."""
SINGLE = types.SimpleNamespace(get_context_parallel_world_size=lambda: 1, get_context_parallel_rank=lambda: 0)


def _stub(name, attributes):
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        own = ".".join(parts[:depth])
        if own not in sys.modules:
            module = sys.modules[own] = types.ModuleType(own)
            module.__path__ = []
            if depth > 1:
                setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], module)
    for attribute in attributes:
        setattr(sys.modules[name], attribute, SINGLE if attribute == "mpu" else type(attribute, (), {}))


def _is_there(name):
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


if SOURCE:
    sys.path[:0] = [str(Path(SOURCE).absolute()), str(HERE)]
    for name, attributes in ATTRIBUTES.items():
        if not _is_there(name):
            _stub(name, attributes)


@pytest.fixture(scope="session", autouse=True)
def _ray():
    """One small cluster for all tests that run slime; none where it is not there."""
    if not SOURCE:
        yield
        return
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
