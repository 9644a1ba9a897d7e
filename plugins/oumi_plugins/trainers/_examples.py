"""Prepared examples on disk: mapped into memory, read when they are asked for, cheap to send to another process."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from oumi_plugins.trainers._cache import Array, Cache, Entry
from oumi_plugins.trainers._fingerprint import digest

Example = dict[str, NDArray[np.int64]]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the rows: `used` and the counts of `dropped` add up to `rows`.

    Attributes:
        rows: Rows read.
        used: Rows that an example was made from.
        dropped: Reason -> rows.
        cut: Rows used that lost what stands beyond the limit.
        sequences: Sequences made from the rows; more than `used` where long texts were divided.
    """

    rows: int
    used: int
    dropped: dict[str, int]
    cut: int
    sequences: int


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What the examples of a split are made of, and where it is stored.

    Attributes:
        blocks: Keys of the entries that hold the sequences, in order.
        first_rows: Row of the split with which each block begins.
        first_sequences: Sequence with which each block begins.
        ignore: The label of positions that are not supervised.
        report: What became of the rows.
    """

    blocks: list[str]
    first_rows: list[int]
    first_sequences: list[int]
    ignore: int
    report: Report


def token_counts(examples: Sequence[Any]) -> NDArray[np.int64]:
    """Return the tokens of each example of any sequence of examples."""
    known = getattr(examples, "lengths", None)
    return np.array([len(example["input_ids"]) for example in examples] if known is None else known, np.int64)


class Examples(Sequence[Example]):
    """The examples of a split. One example is one sequence, or a pack of several.

    `examples[i]` is `input_ids` and `labels`, int64 (tokens,), labels not shifted; a pack also has `lengths`, int64
    (sequences,), and the label with which each of its sequences begins is ignored: nothing predicts it.
    """

    def __init__(self, cache: Cache, fingerprint: str) -> None:
        self._cache, self.fingerprint = cache, fingerprint
        index = cache.open(fingerprint)
        self._contents = msgspec.convert(index.facts, Contents)
        self._index = index.arrays
        self._blocks: dict[int, Entry] = {}

    @property
    def report(self) -> Report:
        """What became of the rows."""
        return self._contents.report

    @property
    def lengths(self) -> NDArray[np.int32]:
        """The tokens of each example, int32 (examples,)."""
        return self._index["lengths"]

    @property
    def content(self) -> str:
        """A digest of what the examples hold, whatever versions of libraries made them."""
        parts = [self._block(block).checksum.encode() for block in range(len(self._contents.blocks))]
        return digest(*parts, *(self._index[name].tobytes() for name in ("packed", "bounds") if name in self._index))

    @property
    def is_packed(self) -> bool:
        """Whether an example is a pack."""
        return "packed" in self._index

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        parts = [self._sequence(number) for number in self._sequences(index)]
        ids, labels = (np.concatenate(arrays).astype(np.int64) for arrays in zip(*parts, strict=True))
        if not self.is_packed:
            return {"input_ids": ids, "labels": labels}
        lengths = np.array([len(part) for part, _ in parts], np.int64)
        labels[np.cumsum(lengths) - lengths] = self._contents.ignore
        return {"input_ids": ids, "labels": labels, "lengths": lengths}

    def sources(self, index: int) -> list[int]:
        """Return the rows of the split that an example was made from, each once."""
        rows: dict[int, None] = {}
        for number in self._sequences(index):
            block, local = self._locate(number)
            rows[self._contents.first_rows[block] + int(self._block(block).arrays["rows"][local])] = None
        return list(rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (str(self._cache.folder), self.fingerprint)

    def _sequences(self, index: int) -> list[int]:
        position = range(len(self))[index]
        if not self.is_packed:
            return [position]
        start, stop = self._index["bounds"][position : position + 2]
        return self._index["packed"][start:stop].tolist()

    def _sequence(self, number: int) -> tuple[Array, Array]:
        block, local = self._locate(number)
        arrays = self._block(block).arrays
        start, stop = arrays["offsets"][local : local + 2]
        return arrays["ids"][start:stop], arrays["labels"][start:stop]

    def _locate(self, number: int) -> tuple[int, int]:
        block = bisect.bisect_right(self._contents.first_sequences, number) - 1
        return block, number - self._contents.first_sequences[block]

    def _block(self, block: int) -> Entry:
        if block not in self._blocks:
            self._blocks[block] = self._cache.open(self._contents.blocks[block])
        return self._blocks[block]


def _opened(folder: str, fingerprint: str) -> Examples:
    return Examples(Cache(Path(folder)), fingerprint)
