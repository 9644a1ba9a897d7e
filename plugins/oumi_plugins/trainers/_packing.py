"""Which sequences share an example: best-fit decreasing within a window, so that it needs no more than that at once."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

WINDOW = 8192
"""Sequences that are looked at together. Larger ones fill packs hardly better."""


def packs(lengths: Sequence[int], limit: int, window: int = WINDOW) -> Iterator[list[int]]:
    """Yield the indices of each pack, in rising order; every index once, no pack longer than `limit` tokens.

    The longest sequences of a window come first, each into the fullest pack that still has room for it (Johnson,
    "Near-optimal bin packing algorithms", 1973). The result follows from the lengths alone.
    """
    for start in range(0, len(lengths), window):
        stop = min(start + window, len(lengths))
        yield from _window(lengths[start:stop], start, limit)


def _window(lengths: Sequence[int], start: int, limit: int) -> list[list[int]]:
    found: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens that still fit, pack), ascending
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        at = bisect.bisect_left(rooms, (length, 0))
        if at < len(rooms):
            room, pack = rooms.pop(at)
        else:
            room, pack = limit, len(found)
            found.append([])
        found[pack].append(start + index)
        bisect.insort(rooms, (room - length, pack))
    return sorted(sorted(pack) for pack in found)
