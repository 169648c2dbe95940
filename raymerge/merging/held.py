"""Bytes that lie in memory for merging: in buffers of the task, or where a store lends them."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from raymerge.checkpoint.nouns import TensorRef
from raymerge.merging.buffers import Account
from raymerge.merging.schedule import Batch
from raymerge.storage import Lent


class Held:
    """The bytes that a batch reads, arriving or there; they are given back once all of its jobs are merged.

    `buffers` and `lent` go by the batch's runs: a run that is lent has no buffer of its own.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.buffers: list[Any] = [None] * len(batch.runs)
        self.lent: dict[int, Lent] = {}
        self.arriving: list[Future[None]] = []
        self._unmerged = len(batch.jobs)
        self._lock = threading.Lock()

    def wait(self) -> None:
        for future in self.arriving:
            future.result()

    def confirm(self) -> None:
        """Raises ChangedError where lent bytes may not be what they were."""
        for lent in self.lent.values():
            lent.confirm()

    def give_back(self, account: Account) -> None:
        for position, buffer in enumerate(self.buffers):
            if position in self.lent:
                self.lent[position].release(0, len(buffer))
                account.give_elsewhere(len(buffer))
            else:
                account.give(buffer)
        self.buffers, self.lent = [], {}

    def raw(self, ref: TensorRef) -> Any:
        position, start = self.batch.places[ref.key]
        return self.buffers[position][start : start + ref.nbytes]

    def is_spent(self) -> bool:
        """Whether the job that now says it is merged was the last one."""
        with self._lock:
            self._unmerged -= 1
            return self._unmerged == 0
