"""The `{% generation %}` blocks of a chat template, held against where the assistant's turns stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from oumi_plugins.trainers._turns import Turn

Stretch = tuple[int, int]
_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Chosen(NamedTuple):
    """What the blocks choose of a turn."""

    stretches: list[Stretch]
    """Where in the text, from and to; none where no block marks the turn."""
    completed: bool
    """Whether the blocks left out what ends the turn, and it was added."""


def has_blocks(template: str) -> bool:
    """Say whether a template has such blocks."""
    return _BLOCK.search(template) is not None


def choose(blocks: Sequence[Stretch], turn: Turn, text: str) -> Chosen:
    """Return what the blocks choose of a turn, with what ends it; nothing outside of the turn."""
    limit = _limit(turn, text)
    inside = [(max(begin, turn.start), min(end, limit)) for begin, end in blocks if begin < limit and end > turn.start]
    if not inside or any(begin <= turn.end and end >= turn.stop for begin, end in inside):
        return Chosen(inside, completed=False)
    return Chosen([*inside, (turn.end, turn.stop)], completed=True)


def stray(blocks: Sequence[Stretch], turns: Sequence[Turn], text: str) -> bool:
    """Say whether a block marks words outside of all turns of the assistant."""
    allowed = sorted((turn.start, _limit(turn, text)) for turn in turns)
    for begin, end in blocks:
        position, rest = begin, ""
        for start, limit in allowed:
            if start < end and limit > position:
                rest += text[position:start]
                position = max(position, limit)
        if (rest + text[position:end]).strip():
            return True
    return False


def _limit(turn: Turn, text: str) -> int:
    """Return how far blocks may reach: over the blanks behind what ends the turn; to the very end of the last one."""
    if turn.final:
        return len(text)
    rest = text[turn.stop : turn.ceiling]
    return turn.stop + len(rest) - len(rest.lstrip())
