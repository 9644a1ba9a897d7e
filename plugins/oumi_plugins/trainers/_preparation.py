"""Rows into examples: read once and in order, rendered some hundred at a time, kept on disk, and never done twice.

Rows are taken in blocks. A block is an entry of the cache under a hash of its rows and of what else matters, so that
nothing is rendered again after a run that was killed, nor what stands before rows that were added to a file.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from oumi_kernel import DataError
from oumi_kernel.contracts import Row
from oumi_plugins.trainers._cache import Cache, Entry
from oumi_plugins.trainers._conversations import sentence
from oumi_plugins.trainers._encoding import INT32, Encoded, Encoding, Ids, Settings, check_packing
from oumi_plugins.trainers._examples import Contents, Examples, Report
from oumi_plugins.trainers._fingerprint import Digest, digest, row_bytes, tokenizer_facts, versions
from oumi_plugins.trainers._packing import packs

_log = logging.getLogger("oumi_plugins.trainers.preparation")
BLOCK_ROWS, BLOCK_BYTES = 4096, 8 << 20
"""A block of rows ends at whichever is reached first; bytes are those of the encoded rows."""
RENDERED_ROWS = 256
MAX_DROPPED = 0.01


class Block(msgspec.Struct):
    """Rows that are prepared together: the number of the first one, the rows, and their hash."""

    first: int
    rows: list[Row]
    digest: str = ""


class Preparation:
    """Makes the examples of a split."""

    def __init__(self, split: str, tokenizer: Any, settings: Settings, cache: Cache) -> None:
        self._split, self._tokenizer, self._settings, self._cache = split, tokenizer, settings, cache
        self._encode = Encoding(tokenizer, settings)

    def __call__(self, rows: Iterable[Row]) -> Examples:
        """Return the examples made from rows.

        Raises:
            ConfigError: It is to pack, and nobody knows how much is a pack.
            DataError: A row cannot be used, or none is left.
            CheckpointError: The cache cannot be written.
        """
        check_packing(self._settings, self._split)
        started, taken = time.perf_counter(), 0
        basis = self._basis()
        summary = _Summary(self._settings)
        for block in self._blocks(rows):
            key = digest(basis, block.digest.encode())
            entry = self._cache.read(key)
            entry, found = (entry, len(block.rows)) if entry else self._prepare(key, block)
            taken += found
            summary.add(key, entry)
        contents = summary.contents()
        self._check(contents.report, summary.shortest)
        examples = self._index(contents, summary.lengths(), basis)
        self._cache.sweep()
        _log.info(
            "data.%s: %d rows in %.1f s: %d prepared, %d taken from the cache in %s",
            *(self._split, contents.report.rows, time.perf_counter() - started),
            *(contents.report.rows - taken, taken, self._cache.folder),
        )
        self._log_report(examples, summary.remarks)
        return examples

    def _basis(self) -> bytes:
        known = msgspec.json.encode([self._settings, tokenizer_facts(self._tokenizer), versions()])
        return digest(known).encode()

    def _blocks(self, rows: Iterable[Row]) -> Iterator[Block]:
        block, seen = Block(first=0, rows=[]), Digest()
        for index, row in enumerate(rows):
            block.rows.append(row)
            seen.add(row_bytes(row, self._place(index)))
            if len(block.rows) == BLOCK_ROWS or seen.size >= BLOCK_BYTES:
                block.digest = seen.text()
                yield block
                block, seen = Block(first=index + 1, rows=[]), Digest()
        if block.rows:
            block.digest = seen.text()
            yield block

    def _prepare(self, key: str, block: Block) -> tuple[Entry, int]:
        """Return the entry of a block that is not there yet, and how many of its rows another process prepared."""
        with self._cache.claimed(key):
            entry = self._cache.read(key)
            return (entry, len(block.rows)) if entry else (self._made(key, block), 0)

    def _made(self, key: str, block: Block) -> Entry:
        made = _Made(self._settings)
        for start in range(0, len(block.rows), RENDERED_ROWS):
            rows = block.rows[start : start + RENDERED_ROWS]
            places = [self._place(block.first + start + index) for index in range(len(rows))]
            for index, encoded in enumerate(self._encode(rows, places), start):
                made.add(index, encoded)
        found = self._encode.take_remarks().items()
        remarks = {what: (count, *self._within(block, place)) for what, (count, place) in found}
        return self._cache.write(key, made.arrays(), {**made.facts(), "remarks": remarks})

    def _within(self, block: Block, place: str) -> tuple[int, str]:
        """Return which row of a block a place is in, and what it says beyond the row."""
        prefix = self._place(0).removesuffix("0")
        number, separator, rest = place.removeprefix(prefix).partition(":")
        return int(number) - block.first, separator + rest

    def _index(self, contents: Contents, lengths: Ids, basis: bytes) -> Examples:
        """Return the examples whose sequences are stored; which of them share a pack is stored beside them."""
        key = digest(b"index", basis, *(block.encode() for block in contents.blocks))
        if self._cache.read(key) is None:
            arrays: dict[str, NDArray[Any]] = {"lengths": lengths}
            if self._settings.pack:
                packed = list(packs(lengths.tolist(), self._settings.limit))
                bounds = np.cumsum([0, *map(len, packed)], dtype=np.int64)
                order = np.array([number for pack in packed for number in pack], np.int64)
                totals = np.add.reduceat(lengths[order], bounds[:-1]).astype(np.int32)
                arrays = {"lengths": totals, "packed": order, "bounds": bounds}
            self._cache.write(key, arrays, msgspec.to_builtins(contents))
        return Examples(self._cache, key)

    def _check(self, report: Report, shortest: int | None) -> None:
        if not report.used and shortest is None:
            raise DataError(
                f"data.{self._split}: 0 of {report.rows} rows have a supervised token, at any length. Check the roles "
                "of the turns (a turn of the assistant is what is learned), or train_target."
            )
        if not report.used:
            raise DataError(
                f"data.{self._split}: 0 of {report.rows} rows have a supervised token after truncation "
                f"(max_length={self._settings.limit}; the smallest limit that keeps a row is {shortest}). "
                "Raise model.model_max_length, or check train_target."
            )

    def _log_report(self, examples: Examples, remarks: Mapping[str, tuple[int, int, str]]) -> None:
        report, split, limit = examples.report, self._split, self._settings.limit
        for what, (count, row, rest) in remarks.items():
            _log.warning("data.%s: %s", split, sentence(what, count, self._place(row) + rest))
        for reason, count in report.dropped.items():
            level = logging.WARNING if count > MAX_DROPPED * report.rows else logging.INFO
            _log.log(level, "data.%s: %d of %d rows dropped: %s", split, count, report.rows, reason)
        if report.cut:
            _log.info("data.%s: %d of %d rows cut to %d tokens", split, report.cut, report.rows, limit)
        if examples.is_packed:
            full = 100 * int(examples.lengths.sum(dtype=np.int64)) / (len(examples) * limit)
            shape = (split, report.sequences, len(examples), limit, full)
            _log.info("data.%s: %d sequences in %d packs of at most %d tokens, which are %.1f %% full", *shape)

    def _place(self, index: int) -> str:
        return f"data.{self._split}, row {index}"


class _Made:
    """The sequences of one block."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ids: list[Ids] = []
        self._labels: list[Ids] = []
        self._rows: list[int] = []
        self._facts: dict[str, Any] = {"rows": 0, "cut": 0, "shortest": None}
        self._dropped: Counter[str] = Counter()

    def add(self, row: int, encoded: Encoded) -> None:
        """Take in a row, or count why not."""
        limit, facts, ids, labels = self._settings.limit, self._facts, encoded.ids, encoded.labels
        facts["rows"] += 1
        supervised = np.flatnonzero(labels[1:] != self._settings.ignore) + 1  # nothing predicts the first token
        if not len(supervised):
            self._dropped["no supervised token"] += 1
            return
        if self._settings.pack and encoded.divisible and limit > 1:
            bounds = _divided(len(ids), limit)
        elif supervised[0] < limit:
            facts["cut"] += len(ids) > limit
            bounds = [0, min(len(ids), limit)]
        else:
            self._dropped[f"no supervised token within {limit} tokens"] += 1
            facts["shortest"] = min(int(supervised[0]) + 1, facts["shortest"] or INT32.max)
            return
        for start, stop in itertools.pairwise(bounds):
            self._ids.append(ids[start:stop])
            self._labels.append(labels[start:stop])
            self._rows.append(row)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is stored: sequences end to end, where each begins, and its row within the block."""
        nothing = np.zeros(0, np.int32)
        return {
            "ids": np.concatenate([nothing, *self._ids]),
            "labels": np.concatenate([nothing, *self._labels]),
            "offsets": np.cumsum([0, *map(len, self._ids)], dtype=np.int64),
            "rows": np.array(self._rows, np.int32),
        }

    def facts(self) -> Mapping[str, Any]:
        """Return what is counted."""
        return self._facts | {"dropped": dict(self._dropped), "used": len(set(self._rows))}


class _Summary:
    """All blocks of a split."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys: list[str] = []
        self._first_rows, self._first_sequences = [0], [0]
        self._lengths: list[Ids] = []
        self._dropped: Counter[str] = Counter()
        self._used = self._cut = 0
        self.shortest: int | None = None
        self.remarks: dict[str, tuple[int, int, str]] = {}

    def add(self, key: str, entry: Entry) -> None:
        """Take in a block."""
        for what, (count, row, rest) in entry.facts["remarks"].items():
            before, *_ = first = self.remarks.get(what, (0, self._first_rows[-1] + row, rest))
            self.remarks[what] = (before + count, *first[1:])
        facts, lengths = entry.facts, np.diff(entry.arrays["offsets"]).astype(np.int32)
        self._keys.append(key)
        self._lengths.append(lengths)
        self._first_rows.append(self._first_rows[-1] + facts["rows"])
        self._first_sequences.append(self._first_sequences[-1] + len(lengths))
        self._dropped.update(facts["dropped"])
        self._used += facts["used"]
        self._cut += facts["cut"]
        self.shortest = min(filter(None, (self.shortest, facts["shortest"])), default=None)

    def lengths(self) -> Ids:
        """Return the tokens of every sequence."""
        return np.concatenate([np.zeros(0, np.int32), *self._lengths])

    def contents(self) -> Contents:
        """Return what the examples are made of."""
        report = Report(
            rows=self._first_rows[-1],
            used=self._used,
            dropped=dict(self._dropped),
            cut=self._cut,
            sequences=self._first_sequences[-1],
        )
        return Contents(
            blocks=self._keys,
            first_rows=self._first_rows[:-1],
            first_sequences=self._first_sequences[:-1],
            ignore=self._settings.ignore,
            report=report,
        )


def _divided(tokens: int, limit: int) -> list[int]:
    """Return the borders of pieces of `limit` tokens; the last one has two at least, or nothing would predict it."""
    borders = [*range(0, tokens, limit), tokens]
    if len(borders) > 2 and borders[-1] - borders[-2] == 1:
        borders[-2] -= 1
    return borders
