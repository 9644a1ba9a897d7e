"""What trains together with each strategy, and what is refused: `combinations.json`, which tests try cell by cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from oumi_kernel.component import Combination

FILE = Path(__file__).with_suffix(".json")


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing, with every strategy.

    Attributes:
        axis: What kind of thing it is.
        name: The thing.
        settings: What a configuration says to have it, as `key: value`.
        refused: Strategy -> why the two are refused; a strategy that is not there trains with it.
        needs_gpu: Why it is refused with every other strategy where there is no GPU; nobody has tried it on one.
    """

    axis: str
    name: str
    settings: tuple[str, ...]
    refused: Mapping[str, str] = {}
    needs_gpu: str = ""

    def reason(self, strategy: str) -> str:
        """Return why a strategy refuses it; empty where both train."""
        return self.refused.get(strategy) or self.needs_gpu


def rows() -> list[Row]:
    """Return the table."""
    return msgspec.json.decode(FILE.read_bytes(), type=list[Row])


def combinations_of(*strategies: str) -> list[Combination]:
    """Return what was tried with a strategy, which has several columns where it has several stages."""
    found: list[Combination] = []
    for row in rows():
        reasons: dict[str, list[str]] = {}
        for strategy in strategies:
            reason = row.reason(strategy)
            reason += " (nobody has tried it on a GPU)" if reason and reason == row.needs_gpu else ""
            reasons.setdefault(reason, []).append(strategy)
        for reason, columns in reasons.items():
            name = row.name if len(reasons) == 1 else f"{row.name} ({', '.join(columns)})"
            found.append(Combination(axis=row.axis, name=name, settings=row.settings, refused=reason))
    return found
