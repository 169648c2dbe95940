"""How shard tasks run."""

from __future__ import annotations

from dataclasses import dataclass

from raymerge.methods.extension import MethodSource
from raymerge.planning.memory import MemoryRules


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """Settings of a run's shard tasks; nothing in here but the device can change a byte of the output.

    `method_sources` are the files that declare the plan's methods, for workers that have none of the driver's files.
    """

    out: str
    memory: MemoryRules
    device: str = "cpu"
    fail_on_nonfinite: bool = True
    method_sources: tuple[MethodSource, ...] = ()
