"""What runs in a Ray worker: one attempt at one task."""

from __future__ import annotations

import pickle
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import ray

# Arguments up to 100 KiB travel with the task; larger ones would pass through the object store and could be lost with
# the node that holds them. Tensor references compress about tenfold.
_COMPRESSION_LEVEL = 1


def pack(function: Callable[[Any], Any], payload: object) -> bytes:
    """A call as bytes. Functions of importable modules are packed by name, those of a script by value."""
    pickled: bytes = ray.cloudpickle.dumps((function, payload))  # type: ignore[no-untyped-call]
    return zlib.compress(pickled, _COMPRESSION_LEVEL)


def attempt(call: bytes) -> Iterator[tuple[Any, ...]]:
    """Yield (node id, node address) when the worker begins, then (result, seconds).

    The first message is how the driver knows what runs where, and whether the node of a dead worker still lives.
    """
    yield ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    started = time.monotonic()
    function, payload = pickle.loads(zlib.decompress(call))  # noqa: S301 - the driver of this job packed it
    result = function(payload)
    yield result, time.monotonic() - started
