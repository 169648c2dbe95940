"""Large tensors whose bytes a store lends where they lie: brought in and let go window by window."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymerge.merging.scan import cut, window_sizes
from raymerge.planning.memory import needs_rows, window_elements
from raymerge.planning.nouns import TensorJob
from raymerge.storage import Lent, store_for


@dataclass(frozen=True, slots=True, kw_only=True)
class LentWindows:
    """The inputs of one job by ref: at most `nbytes` of them count as this process's memory at a time.

    `elements` says how many a window has, by whether windows hold whole rows.
    """

    job: TensorJob
    lent: Sequence[Lent]
    elements: Mapping[bool, int]
    nbytes: int

    def scan(self, rows: bool) -> Iterator[tuple[tuple[int, int], Sequence[Any]]]:
        """Windows in element order, as a Scanner takes them."""
        for elements in cut(self.job.output.element_count, self.elements[rows]):
            spans = [ref.span(*elements) for ref in self.job.refs]
            try:
                for lent, span in zip(self.lent, spans, strict=True):
                    lent.load(*span)
                raw = [np.frombuffer(lent.data, np.uint8) for lent in self.lent]
                yield elements, [each[start:end] for each, (start, end) in zip(raw, spans, strict=True)]
            finally:
                for lent, span in zip(self.lent, spans, strict=True):
                    lent.release(*span)

    def confirm(self) -> None:
        """Raises ChangedError where the bytes may not be what they were."""
        for lent in self.lent:
            lent.confirm()


def lend_windows(job: TensorJob, most_bytes: int) -> LentWindows | None:
    """The inputs of a job in windows of half of `most_bytes` or less; None where not all are lent as they are merged.

    Raises ChangedError for a file that is not the one that was planned with.
    """
    if any(ref.steps or ref.gather for ref in job.refs):
        return None
    elements = {rows: window_elements(job, most_bytes, rows=rows) for rows in {False, needs_rows(job)}}
    nbytes = sum(window_sizes(job, max(elements.values()))) + len(job.refs) * mmap.PAGESIZE
    if nbytes > most_bytes // 2:  # of rows as long as that
        return None
    found: list[Lent] = []
    for i, (ref, place) in enumerate(zip(job.refs, job.shared, strict=True)):
        url, version = ref.file.url, ref.file.version
        lent = found[place] if place < i else None
        lent = lent or store_for(url).lend(url, offset=ref.offset, nbytes=ref.nbytes, version=version)
        if lent is None:
            return None
        found.append(lent)
    return LentWindows(job=job, lent=found, elements=elements, nbytes=nbytes)
