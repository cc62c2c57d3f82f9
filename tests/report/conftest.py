"""Hand-made run directories."""

import pytest
from report_rows import evaluation, lines

from allotment.config import TrainConfig


@pytest.fixture
def write_run(tmp_path):
    """Writes a run directory of 20 steps evaluated at 0, 10 and 20, and hands back its path."""

    def write(name, *, held_out=(0.1, 0.2, 0.3), metrics=None, rollouts=(), seconds=(), **config):
        path = tmp_path / name
        path.mkdir(parents=True)
        settings = TrainConfig(**{"steps": 20, **config})
        rows = [evaluation(10 * i, value + 0.1, value) for i, value in enumerate(held_out)]
        (path / "config.json").write_text(settings.to_json())
        (path / "metrics.jsonl").write_text(lines(rows if metrics is None else metrics))
        (path / "rollouts.jsonl").write_text(lines(rollouts))
        (path / "timing.jsonl").write_text(lines({"step": i + 1, "seconds": s} for i, s in enumerate(seconds)))
        return path

    return write
