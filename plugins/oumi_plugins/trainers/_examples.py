"""Prepared examples, and what became of the rows that they were made from."""

from __future__ import annotations

import msgspec

Example = dict[str, list[int]]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the rows: `used` and the counts of `dropped` add up to `rows`.

    Attributes:
        rows: Rows read.
        used: Rows that an example was made from.
        dropped: Reason -> rows.
        cut: Rows used that lost what stands beyond the limit.
    """

    rows: int
    used: int
    dropped: dict[str, int]
    cut: int


class Examples(list[Example]):
    """The examples of a split: `input_ids` and `labels`, lists of equal length, labels not shifted."""

    def __init__(self, examples: list[Example], sources: list[int], report: Report) -> None:
        super().__init__(examples)
        self._sources, self.report = sources, report

    def sources(self, index: int) -> list[int]:
        """Return the rows of the split that an example was made from."""
        return [self._sources[index]]
