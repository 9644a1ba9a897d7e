"""Examples as a reader sees them: their rows, their text, their tokens, and how long they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from oumi_kernel.config import TrainingParams
from oumi_kernel.contracts import Row, World
from oumi_kernel.rehearsal import Lengths, PreviewedExample, Token
from oumi_plugins.trainers._examples import token_counts
from oumi_plugins.trainers._order import batches_of

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def previews(
    tokenizer: Any, rows: Iterable[Row], examples: Sequence[Any], count: int, ignore: int
) -> list[PreviewedExample]:
    """Return the first `count` examples, each with the rows that it was made from."""
    shown = range(min(count, len(examples)))
    sources_of = getattr(examples, "sources", None)
    sources: dict[int, list[int]] = {index: list(sources_of(index)) for index in shown} if sources_of else {}
    wanted = {row for of_one in sources.values() for row in of_one}
    raw: dict[int, Row] = {}
    for index, row in enumerate(rows) if wanted else ():  # rows of a stream have no index
        if index in wanted:
            raw[index] = row
        if len(raw) == len(wanted):
            break
    return [
        PreviewedExample(
            index=index,
            raw={row: raw[row] for row in sources.get(index, ())},
            rendered=_decoded(tokenizer, list(examples[index]["input_ids"])),
            tokens=tuple(tokens_of(tokenizer, examples[index], ignore)),
        )
        for index in shown
    ]


def tokens_of(tokenizer: Any, example: Mapping[str, Any], ignore: int) -> list[Token]:
    """Return the tokens of an example: the first one is never supervised, as nothing predicts it."""
    ids, labels = ([int(value) for value in example[key]] for key in ("input_ids", "labels"))
    found: list[Token] = []
    for position, (token, label) in enumerate(zip(ids, labels, strict=True)):
        text = _decoded(tokenizer, [token])
        if UNKNOWN in text or not text:  # a part of a character
            text = str(tokenizer.convert_ids_to_tokens(token))
        found.append(Token(token, text, position > 0 and label != ignore))
    return found


def lengths_of(examples: Sequence[Any], training: TrainingParams, ignore: int, world: World) -> Lengths:
    """Return how long examples are, and how much padding the batches of the first epoch would have."""
    lengths = token_counts(examples)
    supervised = sum(int(np.count_nonzero(np.asarray(example["labels"][1:]) != ignore)) for example in examples)
    batches = [lengths[share] for shares in batches_of(lengths, training, world).shares() for share in shares if share]
    padded = sum(int(batch.max()) * len(batch) for batch in batches)
    total = int(lengths.sum())
    median, p95 = np.percentile(lengths, (50, 95), method="inverted_cdf")
    return Lengths(
        shortest=int(lengths.min()),
        median=int(median),
        p95=int(p95),
        longest=int(lengths.max()),
        tokens=total,
        supervised=supervised,
        padding=1 - total / padded,
    )


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
