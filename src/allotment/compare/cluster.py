"""The runs of a comparison on a Ray cluster: Ray schedules them and takes up those whose worker died."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from allotment.compare.plan import Job
from allotment.compare.running import RESTARTS, Ended, explained, train
from allotment.errors import ConfigError, needs_extra


def on_ray(jobs: Sequence[Job], address: str, processes: int, gpus: float = 0.0) -> Generator[Ended]:
    """Do the jobs on the cluster at ``address``, one core a run; yields what ends, as it ends.

    Args:
        jobs: their folders must be on a disk that all nodes share.
        address: as ``ray.init`` takes it; ``local`` starts a cluster on this machine with ``processes`` cores.
        processes: for ``local`` only.
        gpus: of a run; a fraction shares one.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: there is no cluster at ``address``, or it has fewer GPUs than a run asks for.
    """
    with needs_extra("ray"):
        ray: Any = import_module("ray")
    cores = processes if address == "local" else None
    try:
        ray.init(address=address, num_cpus=cores, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(
            "no Ray cluster can be reached there",
            got=f"--ray {address}: {error}",
            allowed="the address of a running cluster, auto, or local",
            fix="start one with `ray start --head`, or let --ray local do it; "
            "where the cluster asks for a token, set RAY_AUTH_MODE=token",
        ) from error
    try:
        _check_gpus(gpus, ray.cluster_resources().get("GPU", 0.0))
        # A task whose worker dies is tried again, from its checkpoint; an error that the run raises is final.
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RESTARTS)(train)
        running = {task.remote(replace(job, path=job.path.resolve())): job for job in jobs}
        while running:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(reference)
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                yield Ended(job, explained(error.cause or error))
            except ray.exceptions.RayError as error:
                yield Ended(job, explained(error))
            else:
                yield Ended(job)
    finally:
        ray.shutdown()


def _check_gpus(asked: float, there: float) -> None:
    """Ray would wait for them without a word."""
    if asked > there:
        raise ConfigError(
            "the cluster has fewer GPUs than a run asks for",
            got=f"--gpus-per-run {asked:g}, {there:g} in the cluster",
            allowed="what the cluster has; a fraction shares a GPU",
            fix="lower --gpus-per-run, or add a node with a GPU",
        )
