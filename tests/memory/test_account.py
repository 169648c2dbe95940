"""What is set aside, in use and idle never exceeds a task's room."""

from __future__ import annotations

import pytest

from raymerge.merging.buffers import Account, drop_idle_buffers

MIB = 1 << 20


@pytest.mark.parametrize(("elsewhere", "is_kept"), [(4, False), (2, False), (1, True), (0, True)])
def test_an_idle_buffer_is_kept_where_there_is_room_beside_what_is_used_elsewhere(
    elsewhere: int, is_kept: bool
) -> None:
    drop_idle_buffers()
    account = Account(4 * MIB)
    assert account.try_acquire(3 * MIB)
    idle = account.take(3 * MIB)
    account.give(idle)
    assert account.try_acquire(elsewhere * MIB)
    account.take_elsewhere(elsewhere * MIB)
    account.give_elsewhere(elsewhere * MIB)
    assert account.in_use_bytes() == 0
    assert account.try_acquire(3 * MIB)
    assert (account.take(3 * MIB) is idle) == is_kept
