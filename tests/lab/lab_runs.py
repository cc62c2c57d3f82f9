"""A run of the lab as the tests of objectives make it."""

import pytest
import torch

from allotment.lab.checkpoint import load_lab
from allotment.lab.train import Trainer
from allotment.run_logs.directory import RunDirectory
from allotment.run_logs.files import read_log


def run(path, settings, mixture, stop_after=None):
    """Metrics and weights at the end of a run, made or taken up again; interrupted after ``stop_after``."""

    def on_step(row):
        if row["step"] == stop_after:
            raise KeyboardInterrupt

    directory = RunDirectory.resume(path, settings) if path.exists() else RunDirectory.create(path, settings)
    trainer = Trainer(settings, load_lab(settings.regime), mixture)
    trainer.run(directory, on_step)
    return read_log(path / "metrics.jsonl"), torch.cat([p.detach().flatten() for p in trainer.lab.policy.parameters()])


def trained_and_resumed(folder, settings, mixture, stop_after, same_bytes):
    """Metrics of a run; another that is interrupted after ``stop_after`` and taken up again leaves the same bytes."""
    run(folder / "whole", settings, mixture)
    with pytest.raises(KeyboardInterrupt):
        run(folder / "cut", settings, mixture, stop_after=stop_after)
    run(folder / "cut", settings, mixture)
    for name in same_bytes:
        assert (folder / "whole" / name).read_bytes() == (folder / "cut" / name).read_bytes(), name
    return read_log(folder / "whole" / "metrics.jsonl")
