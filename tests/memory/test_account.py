"""What is set aside, in use and idle never exceeds a task's room."""

from __future__ import annotations

from raymerge.merging.buffers import Account, drop_idle_buffers

MIB = 1 << 20


def test_what_is_used_elsewhere_takes_the_room_of_idle_buffers() -> None:
    drop_idle_buffers()
    account = Account(4 * MIB)
    assert account.try_acquire(3 * MIB)
    first = account.take(3 * MIB)
    account.give(first)
    assert account.try_acquire(4 * MIB)
    account.take_elsewhere(4 * MIB)
    again = account.take(3 * MIB)
    assert again is not first, "it lay idle where there was no room for it"
    account.give_elsewhere(4 * MIB)
    assert account.in_use_bytes() == 0
    del again
    assert account.try_acquire(4 * MIB)


def test_an_idle_buffer_is_used_again_where_there_is_room_beside_it() -> None:
    drop_idle_buffers()
    account = Account(4 * MIB)
    assert account.try_acquire(2 * MIB)
    first = account.take(2 * MIB)
    account.give(first)
    assert account.try_acquire(2 * MIB)
    account.take_elsewhere(2 * MIB)
    account.give_elsewhere(2 * MIB)
    assert account.try_acquire(2 * MIB)
    assert account.take(2 * MIB) is first
