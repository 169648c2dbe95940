"""Memory of a running shard task: an account that never goes above its budget, and buffers that are used again."""

from __future__ import annotations

import ctypes
import mmap
import threading
from functools import cache
from typing import Any

import numpy as np

from raymerge.storage.linux import HUGE_PAGE_BYTES, map_huge_pages

Bytes = Any  # a 1-D uint8 numpy array


# Smaller buffers come from the allocator; a mapping of its own costs a system call and whole pages.
_MAP_FROM_BYTES = 1 << 20


# The C library's own thresholds grow with what is freed, to 32 MiB for a mapping of its own and 64 MiB of free memory
# that each heap keeps: rows of 4M elements left 45 MiB behind for every merging thread. Blocks of 128K elements
# stay in the heap, where they are used again without a page fault; so does what methods keep, where there is as much
# room beside it: a threshold of just its size is reached, and then all of it goes.
_BLOCKS_BYTES = 2 << 20
_MOST_THRESHOLD_BYTES = 32 << 20  # the C library takes no larger one
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def return_freed_memory(kept_bytes: int) -> None:
    """Give what earlier work left in the C library's heaps back to the system, and keep little from now on.

    `kept_bytes` is what a thread takes anew for every tensor, and is counted for it: as much stays, for the next one.
    Holds for the whole process; nothing happens where the C library is not GNU's.
    """
    library = _c_library()
    if library is not None:
        threshold = min(_BLOCKS_BYTES + kept_bytes, _MOST_THRESHOLD_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, threshold)
        library.mallopt(_M_TRIM_THRESHOLD, threshold)
        library.malloc_trim(0)


@cache
def _c_library() -> Any:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def _map_buffer(nbytes: int, *, is_lasting: bool) -> Bytes:
    """Fresh memory that goes back to the system when it is dropped.

    The C library would keep freed buffers of up to 32 MiB for itself, and a task's memory would creep above its budget.
    """
    if is_lasting and nbytes and nbytes % HUGE_PAGE_BYTES == 0:  # else the last one would take more than was asked for
        return np.frombuffer(map_huge_pages(nbytes), dtype=np.uint8)
    if nbytes < _MAP_FROM_BYTES:
        return np.empty(nbytes, dtype=np.uint8)
    # Private: memory that could be shared has slower page faults. Huge pages are for a few buffers that are used again
    # all the time: a guest that reports free memory to its host gets those back at 2 s per GB.
    return np.frombuffer(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=np.uint8)


_idle_of_nobody: list[Bytes] = []
_lock = threading.Lock()


def _left_behind() -> list[Bytes]:
    with _lock:
        found = list(_idle_of_nobody)
        _idle_of_nobody.clear()
    return found


def drop_idle_buffers(beyond_bytes: int = 0) -> None:
    """Give the buffers that the last task left for the next one back to the system, but for so many bytes of them."""
    with _lock:
        while sum(buffer.nbytes for buffer in _idle_of_nobody) > beyond_bytes:
            _idle_of_nobody.pop(0)


class Account:
    """Counts bytes in use against a capacity. Admission is in the order of asking, by one thread.

    Buffers that were given back lie idle for another use; they and the buffers taken never exceed the capacity.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._used = 0
        self._taken = 0
        self._idle = _left_behind()
        self._lock = threading.Lock()
        self.make_room()

    def close(self) -> None:
        """Leave idle buffers to the next account of this process, or to `drop_idle_buffers`."""
        with _lock:
            if not _idle_of_nobody:
                _idle_of_nobody.extend(self._idle)
        self._idle = []

    def in_use_bytes(self) -> int:
        return self._used

    def try_acquire(self, nbytes: int) -> bool:
        """Whether `nbytes` were set aside. A request above the capacity is granted when nothing else is in use."""
        with self._lock:
            if self._used and self._used + nbytes > self._capacity:
                return False
            self._used += nbytes
            return True

    def release(self, nbytes: int) -> None:
        with self._lock:
            self._used -= nbytes

    def make_room(self) -> None:
        """Drop idle buffers until they fit beside all that was set aside: call it before filling other memory."""
        with self._lock:
            self._trim(self._capacity - self._used)

    def take(self, nbytes: int, *, is_lasting: bool = False) -> Bytes:
        """A buffer of exactly `nbytes`, which must have been acquired; one of that size is used again if there is one.

        Fresh pages cost a sixth of a second per gigabyte; layers repeat the same few sizes. `is_lasting` is said of
        buffers that are used again throughout: they get the pages that are best to write to a disk.
        """
        with self._lock:
            self._taken += nbytes
            for position in reversed(range(len(self._idle))):
                if self._idle[position].nbytes == nbytes:
                    return self._idle.pop(position)
            self._trim(self._capacity - self._taken)
        return _map_buffer(nbytes, is_lasting=is_lasting)

    def take_elsewhere(self, nbytes: int) -> None:
        """Of what was acquired, so much is about to be used in memory that is no buffer of this account."""
        with self._lock:
            self._taken += nbytes
            self._trim(self._capacity - self._taken)

    def give_elsewhere(self, nbytes: int) -> None:
        """What `take_elsewhere` counted is gone again; releases its bytes."""
        with self._lock:
            self._used -= nbytes
            self._taken -= nbytes

    def give(self, buffer: Bytes) -> None:
        """Hand a buffer back for another use, and release its bytes."""
        self.put_back(buffer)
        self.release(buffer.nbytes)

    def put_back(self, buffer: Bytes) -> None:
        """Hand a buffer back for another use; its bytes stay acquired."""
        with self._lock:
            self._taken -= buffer.nbytes
            self._idle.append(buffer)
            self._trim(self._capacity - self._taken)

    def _trim(self, room: int) -> None:
        """Drop the buffers that lie idle longest until the others fit `room`: an idle byte is still a byte."""
        idle = sum(buffer.nbytes for buffer in self._idle)
        while self._idle and idle > room:
            idle -= self._idle.pop(0).nbytes
