"""Which rows of which datasets make up a split, and in what order: pure index arithmetic, no row is touched."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from typing import overload

from oumi_kernel.config import DatasetParams, DatasetSplitParams
from oumi_kernel.contracts import Row
from oumi_kernel.errors import DataError

PART, ROW = "H", "q"
"""Type codes: at most 65,535 datasets, of any number of rows."""


class Mixture(Sequence[Row]):
    """Rows of several datasets under one index."""

    def __init__(self, parts: Sequence[Sequence[Row]], of: array[int], rows: array[int]) -> None:
        """Take the datasets, and for every index the dataset and the row in it."""
        self._parts, self._of, self._rows = parts, of, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return Mixture(self._parts, self._of[index], self._rows[index])
        return self._parts[self._of[index]][self._rows[index]]


def mix(parts: Sequence[Sequence[Row]], split: DatasetSplitParams, *, split_name: str) -> Mixture:
    """Shuffle, sample and mix the datasets of a split as its entries say.

    Each dataset is shuffled (`shuffle`, `seed`), then cut or repeated to `sample_count`. Without proportions the
    datasets follow one another; with them, each next row is drawn from a dataset with its probability, until the first
    dataset (`first_exhausted`) or every dataset (`all_exhausted`, short ones start again) has run out.

    Raises:
        DataError: A dataset of the split is empty, or nothing is taken of any.
    """
    for params, rows in zip(split.datasets, parts, strict=True):
        if not rows:
            raise DataError(f"data.{split_name}: dataset '{params.dataset_name}' has no rows.")
    rows_of = [_sampled(params, len(rows)) for params, rows in zip(split.datasets, parts, strict=True)]
    proportions = [params.mixture_proportion for params in split.datasets]
    for params, taken in zip(split.datasets, rows_of, strict=True):
        if params.mixture_proportion and not taken:
            raise DataError(
                f"data.{split_name}: dataset '{params.dataset_name}' has sample_count 0 and mixture_proportion "
                f"{params.mixture_proportion}; leave it out, or raise sample_count."
            )
    of, rows = array(PART), array(ROW)
    if any(proportion is None for proportion in proportions):
        for part, taken in enumerate(rows_of):
            of.extend(array(PART, [part]) * len(taken))
            rows.extend(taken)
    else:
        weights = [proportion or 0.0 for proportion in proportions]
        _interleave(rows_of, weights, split, of, rows)
    if not rows:
        raise DataError(f"data.{split_name}: sample_count leaves no rows.")
    return Mixture(parts, of, rows)


def _sampled(params: DatasetParams, rows: int) -> array[int]:
    order = array(ROW, range(rows))
    if params.shuffle:
        random.Random(params.seed).shuffle(order)  # noqa: S311 - sampling, not a secret
    count = rows if params.sample_count is None else params.sample_count
    return (order * (-(-count // rows)))[:count]


def _interleave(
    rows_of: Sequence[array[int]],
    weights: Sequence[float],
    split: DatasetSplitParams,
    of: array[int],
    rows: array[int],
) -> None:
    """Append the dataset and the row of each draw to `of` and `rows`."""
    generator = random.Random(split.seed)  # noqa: S311 - sampling, not a secret
    taken = [0] * len(rows_of)
    drawn_from = [part for part, weight in enumerate(weights) if weight > 0]
    waiting = set(drawn_from)
    while waiting:
        (part,) = generator.choices(range(len(rows_of)), weights)
        of.append(part)
        rows.append(rows_of[part][taken[part] % len(rows_of[part])])
        taken[part] += 1
        if taken[part] == len(rows_of[part]):
            waiting.discard(part)
            if split.mixture_strategy == "first_exhausted":
                return
