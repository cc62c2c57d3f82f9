"""Prompts that do not come back: their worker died, or they take too long.

verl would wait for ever; here they fail, which it knows how to go on from.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import ray
import transfer_queue as tq
from ray.exceptions import ActorDiedError, RayError

log = logging.getLogger("allotment")

INTERVAL = 2.0
"""Seconds between two looks."""
UNFINISHED = ("pending", "running")
"""What verl says of a prompt that has not come back."""


@dataclass(frozen=True)
class Sent:
    """A prompt that a worker has."""

    partition: str
    worker: Any
    at: float
    """Seconds of a clock that only goes forward."""


class Watch:
    """Looks whether workers are alive and prompts in time, in a thread of its own.

    The prompts that a dead worker had not finished, and those that take longer than ``limit``, get the status
    ``failure`` in TransferQueue: a synchronous trainer then trains on what came back, an asynchronous one fetches
    others in their place. A dead worker gets no more prompts.

    Args:
        workers: verl's list; dead workers are taken off it.
        limit: seconds that a prompt may take; None for any.
    """

    def __init__(self, workers: list[Any], limit: float | None = None) -> None:
        self._workers, self._limit = workers, limit
        self._sent: dict[str, Sent] = {}
        self._late: dict[str, str] = {}
        """Partition of each prompt that took too long, for what its worker may still send."""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def sent(self, worker: Any, uids: Iterable[str], partition: str) -> None:
        """Remember which worker has which prompts."""
        with self._lock:
            self._sent.update((uid, Sent(partition, worker, time.monotonic())) for uid in uids)

    def forget_finished(self, listed: Collection[str]) -> None:
        """Drop the prompts that verl has done with: all but those ``listed`` in TransferQueue."""
        with self._lock:
            self._sent = {uid: entry for uid, entry in self._sent.items() if uid in listed}

    def bury(self, worker: Any) -> None:
        """Take off a dead worker; the prompts that it had fail."""
        with self._lock:
            if worker in self._workers:
                self._workers.remove(worker)
        self._fail_of(worker)

    def _look(self) -> None:
        pause = threading.Event()
        while not pause.wait(INTERVAL) and ray.is_initialized():
            for worker in list(self._workers):
                try:
                    ray.get(worker.__ray_ready__.remote(), timeout=INTERVAL)
                except ActorDiedError:
                    self.bury(worker)
                except (RayError, TimeoutError):
                    continue  # busy, or out of reach for a moment
            if self._limit is not None:
                self._fail_late(time.monotonic() - self._limit)

    def _fail_of(self, worker: Any) -> None:
        with self._lock:
            own = {uid: entry for uid, entry in self._sent.items() if entry.worker == worker}
            self._sent = {uid: entry for uid, entry in self._sent.items() if uid not in own}
            lost = fail(own)
        if lost or own:
            log.error(
                "an agent-loop worker died; its %d unfinished prompts have failed, %d workers go on",
                len(lost),
                len(self._workers),
            )

    def _fail_late(self, before: float) -> None:
        """Fail what was sent too early; take away what workers still send of prompts that verl has done with."""
        tags = tq.kv_list() or {}
        for uid, partition in list(self._late.items()):
            keys = [key for key in tags.get(partition, {}) if key.partition("_")[0] == uid]
            is_open = tags.get(partition, {}).get(uid, {}).get("is_prompt", False)
            if keys and not is_open:
                tq.kv_clear(keys=keys, partition_id=partition)
        with self._lock:
            late = {uid: entry for uid, entry in self._sent.items() if entry.at < before}
            self._sent = {uid: entry for uid, entry in self._sent.items() if uid not in late}
            lost = fail(late)
            self._late |= {uid: late[uid].partition for uid in lost}
        if lost:
            log.error("%d prompts did not come back in %g s and have failed", len(lost), self._limit)


def fail(sent: dict[str, Sent]) -> list[str]:
    """Give those of these prompts that are unfinished the status of a failure; their uids."""
    tags = tq.kv_list() or {} if sent else {}
    lost = [u for u, entry in sent.items() if tags.get(entry.partition, {}).get(u, {}).get("status") in UNFINISHED]
    for uid in lost:
        tq.kv_put(key=uid, partition_id=sent[uid].partition, tag={"status": "failure"})
    return lost
