"""Rows into token ids and labels: conversations by the chat template, texts by the tokenizer, tokens as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from oumi_kernel import ConfigError, DataError, Problem
from oumi_kernel.config import TrainTarget
from oumi_kernel.contracts import Row
from oumi_plugins.trainers._conversations import Renderer

SANE_LENGTH = 1_000_000
"""Tokenizers that know no limit name an absurd one."""
USUAL_IGNORE = -100
"""The label that data sets give to tokens that carry no loss."""
INT32 = np.iinfo(np.int32)

Ids = NDArray[np.int32]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What examples follow from beside rows and tokenizer.

    Attributes:
        target: The tokens that are supervised.
        variables: Further variables of the chat template.
        limit: The most tokens of an example.
        ignore: The label of the others.
        pack: Whether several sequences share an example, and long texts are divided instead of cut.
        column: The column that is trained on; None: known by its name.
    """

    target: TrainTarget
    variables: dict[str, Any]
    limit: int
    ignore: int
    pack: bool
    column: str | None


class Encoded(msgspec.Struct, frozen=True):
    """A row in tokens: ids and labels, int32 (tokens,), labels not shifted; and whether it may be divided."""

    ids: Ids
    labels: Ids
    divisible: bool


class Encoding:
    """Turns rows into tokens."""

    def __init__(self, tokenizer: Any, settings: Settings) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        self._renderer: Renderer | None = None

    def __call__(self, rows: Sequence[Row], places: Sequence[str]) -> list[Encoded]:
        """Return the tokens of each row.

        Raises:
            DataError: A row cannot be used.
        """
        if self._settings.column is not None:
            rows = [_only(row, self._settings.column, place) for row, place in zip(rows, places, strict=True)]
        talks = [index for index, row in enumerate(rows) if "messages" in row]
        rendered = self._render([rows[index] for index in talks], [places[index] for index in talks])
        found = {index: self._masked(*pair) for index, pair in zip(talks, rendered, strict=True)}
        texts = [i for i, row in enumerate(rows) if i not in found and "input_ids" not in row]
        found |= zip(texts, self._texts([_text_of(rows[i], places[i]) for i in texts]), strict=True)
        return [found.get(i) or self._tokens(row, places[i]) for i, row in enumerate(rows)]

    def take_remarks(self) -> dict[str, tuple[int, str]]:
        """Return what users should know about the conversations since the last call (see `Renderer`)."""
        return self._renderer.take_remarks() if self._renderer else {}

    def _render(self, rows: Sequence[Row], places: Sequence[str]) -> Sequence[tuple[list[int], list[bool]]]:
        if not rows:
            return []
        if self._renderer is None:
            self._renderer = Renderer(self._tokenizer, self._settings.target, self._settings.variables)
        return self._renderer.batch(rows, places)

    def _masked(self, ids: list[int], mask: list[bool]) -> Encoded:
        tokens = np.array(ids, np.int32)
        labels = np.where(np.array(mask, np.bool_), tokens, np.int32(self._settings.ignore))
        return Encoded(tokens, labels, divisible=False)

    def _texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Return texts, all of which is supervised; each ends with the token that ends a text, once."""
        if not texts:
            return []
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        found: list[Encoded] = []
        for ids in self._tokenizer(list(texts), verbose=False)["input_ids"]:
            if begin is not None and ids[:2] == [begin, begin]:
                ids = ids[1:]  # noqa: PLW2901 - the text brought its own
            closed = ids if end is None or (ids and ids[-1] == end) else [*ids, end]
            tokens = np.array(closed, np.int32)
            found.append(Encoded(tokens, tokens, divisible=True))
        return found

    def _tokens(self, row: Row, place: str) -> Encoded:
        """Return a row of tokens as they are; without labels, all of it is supervised."""
        ids, labels = _numbers(row, "input_ids", place), row.get("labels")
        self._check_known(ids, "input_ids", place)
        if labels is None:
            return Encoded(ids, ids, divisible=True)
        labels = _numbers(row, "labels", place)
        if len(ids) != len(labels):
            raise DataError(f"{place}: {len(ids)} input_ids and {len(labels)} labels; each token needs its label.")
        labels[labels == USUAL_IGNORE] = self._settings.ignore
        self._check_known(labels[labels != self._settings.ignore], "labels", place)
        return Encoded(ids, labels, divisible=False)

    def _check_known(self, ids: Ids, key: str, place: str) -> None:
        """Refuse what is no token of this tokenizer, on which the model would fail, or learn nonsense."""
        known = len(self._tokenizer)
        if ids.size and not (ids.min() >= 0 and ids.max() < known):
            wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
            raise DataError(f"{place}: {key}: {wrong} is no token; the tokenizer has 0 to {known - 1}.")


def limit_of(own: int | None, model: int | None, tokenizer: Any) -> int:
    """Return the most tokens of an example: what the trainer is told, else the model, else what the tokenizer knows."""
    return own or model or min(tokenizer.model_max_length, SANE_LENGTH)


def check_packing(settings: Settings, split: str) -> None:
    """Refuse to fill packs whose size nobody knows.

    Raises:
        ConfigError: There is no limit.
    """
    if settings.pack and settings.limit >= SANE_LENGTH:
        message = f"data.{split}.pack fills examples up to this length, and the tokenizer does not know one either."
        raise ConfigError(Problem(code="missing-key", path="model.model_max_length", message=message))


def _only(row: Row, column: str, place: str) -> Row:
    """Return the column that is trained on, with what belongs to it, under the name that says what it holds."""
    if column not in row:
        raise DataError(f"{place}: there is no column '{column}' (target_col); columns: {', '.join(map(str, row))}.")
    value = row[column]
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, Sequence | np.ndarray):
        raise DataError(f"{place}: {column}: expected text, turns or tokens, got {type(value).__name__}.")
    name, beside = ("messages", "tools") if _is_talk(value) else ("input_ids", "labels")
    return {name: value} | {key: row[key] for key in (beside,) if key in row}


def _is_talk(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _text_of(row: Row, place: str) -> str:
    if not isinstance(row.get("text"), str):
        keys = ", ".join(map(str, row))
        raise DataError(f"{place}: a row with the keys {keys} cannot be trained on; it needs messages or text.")
    return row["text"]


def _numbers(row: Row, key: str, place: str) -> Ids:
    values = np.asarray(row[key])
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise DataError(f"{place}: {key}: expected a list of token ids, which are whole numbers.")
    if values.size and not (values.min() >= INT32.min and values.max() <= INT32.max):
        raise DataError(f"{place}: {key}: {values.min()} to {values.max()} are no token ids.")
    return values.astype(np.int32)
