"""How shard tasks run."""

from __future__ import annotations

from dataclasses import dataclass

from raymerge.planning.memory import MemoryRules


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """Settings of a run's shard tasks; nothing in here but the device can change a byte of the output."""

    out: str
    memory: MemoryRules
    device: str = "cpu"
    fail_on_nonfinite: bool = True
