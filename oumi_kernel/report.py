"""What a component says of the model once it is built: in the header of the run, and in its record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of what was asked of a component.

    Attributes:
        title: The word before the first line, of at most ten letters.
        lines: What people read, a fact a line.
        facts: The same for machines: plain data, by configuration key where it answers one.
    """

    title: str
    lines: tuple[str, ...]
    facts: Mapping[str, Any] = {}
