"""One run in a process of its own: made or continued, never by two processes at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any

from allotment.compare.figures import Job
from allotment.errors import AllotmentError, ConfigError, memory_explained, needs_extra
from allotment.run_logs.directory import RunDirectory
from allotment.run_logs.one_writer import one_writer
from allotment.trainers import trainer_of

RESTARTS = 3
"""How often a run whose process was killed is taken up again; an error that the run raises itself is final."""
DYING_S = 20.0
"""How long a run waits for a process that still holds its directory, such as the worker of a killed comparison."""


@dataclass(frozen=True)
class Ended:
    """What became of a job."""

    job: Job
    error: str | None = None
    """Why it did not finish; None if it did."""


def train(job: Job) -> None:
    """Make or continue the run of a job, in this process. Raises AllotmentError: as the trainer and the run directory
    raise it; RunDirectoryError if another process is at work.
    """
    path, config = job.path, job.config
    with one_writer(path, DYING_S), memory_explained():
        trainer = trainer_of(config, path)  # before the directory: settings that it refuses leave none behind
        exists = (path / "config.json").exists()
        directory = RunDirectory.resume(path, config) if exists else RunDirectory.create(path, config)
        trainer.run(directory, lambda row: None)


def on_processes(jobs: Sequence[Job], processes: int) -> Generator[Ended]:
    """Do the jobs in local processes, each of which does one run after another; yields what ends, as it ends.

    A killed process costs its own run only, which goes on from its checkpoint in a new process. (A process pool of the
    standard library would lose all runs with it.) Whatever ends this generator early ends the processes, and every run
    stays resumable.
    """
    waiting, busy = list(reversed(jobs)), dict[Any, _Worker]()

    def hire(job: Job, restarts: int = 0) -> None:
        worker = _Worker()
        busy[worker.link] = worker
        worker.take(job, restarts)

    try:
        while waiting or busy:
            while waiting and len(busy) < processes:
                hire(waiting.pop())
            for link in connection.wait(list(busy)):
                worker = busy.pop(link)
                ended = worker.ended()
                if ended is not None and waiting:
                    busy[link] = worker
                    worker.take(waiting.pop())
                else:
                    worker.kill()
                if ended is not None:
                    yield ended
                elif worker.restarts < RESTARTS:
                    hire(worker.job, worker.restarts + 1)
                else:
                    yield Ended(worker.job, f"its process was killed {RESTARTS + 1} times")
    finally:
        for worker in busy.values():
            worker.kill()


class _Worker:
    """A process that does one run at a time and says through ``link`` how it went."""

    job: Job
    restarts: int

    def __init__(self) -> None:
        context = get_context("spawn")  # torch's threads do not survive a fork
        self.link, end = context.Pipe()
        self._process = context.Process(target=_work, args=(end,), daemon=True)
        self._process.start()
        end.close()

    def take(self, job: Job, restarts: int = 0) -> None:
        """Begin a run; ``restarts`` counts the processes that were killed over it."""
        self.job, self.restarts = job, restarts
        with suppress(OSError):  # a process that is dead by now is noticed in the next wait
            self.link.send(job)

    def ended(self) -> Ended | None:
        """What became of the run, once ``link`` is readable; None if the process was killed."""
        try:
            return Ended(self.job, self.link.recv())
        except (EOFError, OSError):
            return None

    def kill(self) -> None:
        """End the process at once; run directories are made for that."""
        self._process.kill()
        self._process.join()
        self.link.close()


def _work(link: Connection) -> None:
    """In the worker: runs, and what became of each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            train(link.recv())
        except EOFError:
            return
        except Exception as error:  # told to the parent, which goes on with the other runs
            link.send(explained(error))
        else:
            link.send(None)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def explained(error: BaseException) -> str:
    """An error as a text: the library's own speak for themselves."""
    return str(error) if isinstance(error, AllotmentError) else f"{type(error).__name__}: {error}"


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
        there = ray.cluster_resources().get("GPU", 0.0)
        if gpus > there:  # Ray would wait for them without a word
            raise ConfigError(
                "the cluster has fewer GPUs than a run asks for",
                got=f"--gpus-per-run {gpus:g}, {there:g} in the cluster",
                allowed="what the cluster has; a fraction shares a GPU",
                fix="lower --gpus-per-run, or add a node with a GPU",
            )
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
