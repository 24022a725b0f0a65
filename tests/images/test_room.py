"""Bytes that threads hold: never more than there is room for, unless one alone is larger."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpu_cluster.images.room import Room


def most_held(room: Room, sizes: list[int]) -> int:
    """Return how many bytes were held at once, at most, by threads that hold these."""
    held: list[int] = []
    most: list[int] = []

    def hold(size: int) -> None:
        with room.taken(size):
            held.append(size)
            most.append(sum(held))
            time.sleep(0.01)
            held.remove(size)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, sizes))
    assert len(most) == len(sizes)
    return max(most)


def test_threads_hold_no_more_than_there_is_room_for():
    assert 6 <= most_held(Room(10), [3] * 16) <= 10


def test_what_is_larger_than_the_room_is_held_alone():
    assert most_held(Room(10), [1, 99, 2, 99, 3, 4]) == 99


def test_what_fails_gives_its_bytes_back():
    room = Room(10)
    with pytest.raises(ValueError, match="wrong"), room.taken(10):
        raise ValueError("wrong")
    assert most_held(room, [10]) == 10
