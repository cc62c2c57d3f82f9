"""Processes that compare mathematical answers, each comparison with a time limit that also ends what hangs in C.

Plain child processes on pipes rather than ``multiprocessing``: a process pool of the standard library does not survive
the end of a worker, and its workers import the training script again.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from queue import SimpleQueue

from allotment.errors import InvalidInputError, needs_extra


class MathPool:
    """Compares answers in ``workers`` processes, started when first needed, ended by :meth:`close` or at exit.

    Args:
        limit: seconds a comparison may take.
        workers: processes; by default one a core, at most 4 (a comparison takes about a millisecond).

    Raises:
        InvalidInputError: ``limit`` or ``workers`` is not positive.
        MissingExtraError: math-verify is not installed.
    """

    def __init__(self, limit: float = 5.0, workers: int | None = None) -> None:
        workers = min(4, os.cpu_count() or 1) if workers is None else workers
        if limit <= 0 or workers < 1:
            raise InvalidInputError(
                "math pool", got=f"limit {limit}, workers {workers}", allowed="> 0", fix="use 5.0 and 1 or more"
            )
        with needs_extra("trl"):
            if find_spec("math_verify") is None:
                raise ImportError("no module named 'math_verify'", name="math_verify")
        self._limit = limit
        self._threads = ThreadPoolExecutor(workers)  # each waits for one process
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._workers = [_Worker() for _ in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)
        atexit.register(self.close)

    def compare(self, golds: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        """[N] 1.0 equal, 0.0 unequal; None: the gold answer is no mathematics, or the limit or a crash ended it."""
        return list(self._threads.map(self._one, golds, completions))

    def close(self) -> None:
        """End the processes; a later :meth:`compare` is an error."""
        atexit.unregister(self.close)
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _one(self, gold: str, completion: str) -> float | None:
        worker = self._idle.get()
        try:
            return worker.ask(self._limit, gold, completion)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process of ``math_worker``; replaced when it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, limit: float, gold: str, completion: str) -> float | None:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps([limit, gold, completion]), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):  # the process has ended
            self.close()
            return None
        value: float | None = json.loads(answer)
        return value

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-m", "allotment.tasks.math_worker"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert self._process.stdout is not None
            if self._process.stdout.readline() != "ready\n":
                self.close()
                raise RuntimeError("the process that compares answers does not start; its message stands above")
        return self._process
