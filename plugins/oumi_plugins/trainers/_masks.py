"""Stretches of a text -> which tokens are supervised."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """A supervised stretch of a text, in characters."""

    floor: int
    """Where the text of the turn before it ends."""
    start: int
    stop: int
    ceiling: int
    """Where the text of the turn after it begins."""


def mask(text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[bool]:
    """Return for each token whether it is supervised.

    A token across a border is supervised if some of the assistant's text is in it (blanks are not enough), since
    nothing else could teach that text; but never one that holds text of another turn.

    Args:
        text: The whole text.
        offsets: From and to of each token in it, in characters. Several tokens may make one character, and some
            tokenizers keep blanks off a token's ends.
        spans: In order.
    """
    result = [False] * len(offsets)
    ends = [end for _, end in offsets]
    for floor, start, stop, ceiling in spans:
        first = bisect_right(ends, start)
        while first < len(ends) and offsets[first][0] < start:
            if offsets[first][0] >= floor and text[start : min(ends[first], stop)].strip():
                break
            first += 1
        last = bisect_left(ends, stop, lo=first)
        while last < len(ends) and offsets[last][0] < stop:
            last += 1
        while last > first and ends[last - 1] > ceiling:
            last -= 1
        result[first:last] = [True] * (last - first)
    return result
