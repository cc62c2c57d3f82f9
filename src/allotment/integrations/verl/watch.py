"""A dead agent-loop worker: verl waits for its prompts for ever. Here they fail, which verl knows how to go on from."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any

import ray
import transfer_queue as tq
from ray.exceptions import ActorDiedError, RayError

log = logging.getLogger("allotment")

INTERVAL = 2.0
"""Seconds between two looks."""


class Watch:
    """Looks whether workers are alive, in a thread of its own.

    The prompts that a dead worker had not finished get the status ``failure`` in TransferQueue: a synchronous trainer
    then trains on what came back, an asynchronous one fetches others in their place. The worker gets no more prompts.

    Args:
        workers: verl's list; dead workers are taken off it.
    """

    def __init__(self, workers: list[Any]) -> None:
        self._workers = workers
        self._sent: dict[str, tuple[str, Any]] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def sent(self, worker: Any, uids: Iterable[str], partition: str) -> None:
        """Remember which worker has which prompts."""
        with self._lock:
            self._sent.update((uid, (partition, worker)) for uid in uids)

    def forget_finished(self) -> None:
        """Drop the prompts that verl has done with."""
        listed = {key for keys in (tq.kv_list() or {}).values() for key in keys}
        with self._lock:
            self._sent = {uid: entry for uid, entry in self._sent.items() if uid in listed}

    def _look(self) -> None:
        pause = threading.Event()
        while not pause.wait(INTERVAL) and ray.is_initialized():
            for worker in list(self._workers):
                try:
                    ray.get(worker.__ray_ready__.remote(), timeout=INTERVAL)
                except ActorDiedError:
                    self._workers.remove(worker)
                    self._fail(worker)
                except (RayError, TimeoutError):
                    continue  # busy, or out of reach for a moment

    def _fail(self, worker: Any) -> None:
        with self._lock:
            own = [(uid, partition) for uid, (partition, holder) in self._sent.items() if holder == worker]
        tags = tq.kv_list() or {}
        lost = [(u, p) for u, p in own if tags.get(p, {}).get(u, {}).get("status") in ("pending", "running")]
        for uid, partition in lost:
            tq.kv_put(key=uid, partition_id=partition, tag={"status": "failure"})
        log.error(
            "an agent-loop worker died; its %d unfinished prompts have failed, %d workers go on",
            len(lost),
            len(self._workers),
        )
