"""Packs: every sequence once, none longer than the limit, each with its own labels, and none predicted from another."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oumi_kernel import ConfigError, DataError
from oumi_kernel.config import TrainTarget
from oumi_plugins.trainers._packing import packs
from tests.trainers.test_examples import chat, tokenizer, trainer

TOKENIZER = tokenizer()
ALL = TrainTarget.ALL_TOKENS
PACKED = "    pack: true\n    stream: true\n"
lengths = st.integers(2, 40).flatmap(
    lambda limit: st.tuples(st.lists(st.integers(1, limit), max_size=60), st.just(limit))
)


@given(lengths, st.integers(1, 20))
def test_every_sequence_is_in_one_pack_and_no_pack_is_too_long(
    given_lengths: tuple[list[int], int], window: int
) -> None:
    sizes, limit = given_lengths
    found = list(packs(sizes, limit, window))
    assert sorted(index for pack in found for index in pack) == list(range(len(sizes)))
    assert all(sum(sizes[index] for index in pack) <= limit for pack in found)
    assert all(pack == sorted(pack) and pack[-1] // window == pack[0] // window for pack in found)
    assert found == list(packs(sizes, limit, window))


@given(lengths)
def test_no_two_packs_of_a_window_could_have_been_one(given_lengths: tuple[list[int], int]) -> None:
    sizes, limit = given_lengths
    totals = sorted(sum(sizes[index] for index in pack) for pack in packs(sizes, limit, 1000))
    assert len(totals) < 2 or totals[0] + totals[1] > limit


def test_the_fullest_pack_that_has_room_is_filled_first() -> None:
    assert list(packs([6, 5, 4, 3, 2], 10)) == [[0, 2], [1, 3, 4]]
    assert list(packs([5, 7, 3, 2], 10)) == [[0, 3], [1, 2]]


def test_a_real_length_distribution_fills_packs_almost_whole() -> None:
    sizes = np.random.default_rng(1).lognormal(4.5, 0.6, 20_000).clip(4, 512).astype(int).tolist()
    assert sum(sizes) / (len(list(packs(sizes, 512))) * 512) > 0.995


rows = st.lists(
    st.lists(st.tuples(st.integers(1, 900), st.booleans()), min_size=0, max_size=30).map(
        lambda pairs: {"input_ids": [t for t, _ in pairs], "labels": [t if kept else -100 for t, kept in pairs]}
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows, st.integers(2, 32))
def test_nothing_is_lost_and_every_sequence_keeps_its_own_labels(given_rows: list[dict], limit: int) -> None:
    built = trainer(TOKENIZER, data=PACKED, max_length=limit)
    usable = [n for n, row in enumerate(given_rows) if any(label != -100 for label in row["labels"][1:limit])]
    if not usable:
        with pytest.raises(DataError, match=f"0 of {len(given_rows)} rows"):
            built.prepare("train", given_rows, ALL)
        return
    examples = built.prepare("train", given_rows, ALL)
    seen: list[int] = []
    for index, example in enumerate(examples):
        assert len(example["input_ids"]) == len(example["labels"]) == example["lengths"].sum() <= limit
        assert examples.lengths[index] == len(example["input_ids"])
        sources, start = examples.sources(index), 0
        assert len(sources) == len(example["lengths"])
        for source, length in zip(sources, example["lengths"].tolist(), strict=True):
            row = given_rows[source]
            assert example["input_ids"][start : start + length].tolist() == row["input_ids"][:limit]
            assert example["labels"][start : start + length].tolist() == [-100, *row["labels"][1:limit]]
            start += length
        seen += sources
    assert sorted(seen) == usable
    report = examples.report
    assert (report.rows, report.used) == (len(given_rows), len(usable))
    assert report.used + sum(report.dropped.values()) == report.rows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 90), min_size=1, max_size=8), st.integers(3, 20))
def test_long_texts_are_divided_and_no_token_of_them_is_lost(sizes: list[int], limit: int) -> None:
    texts = [[100 * row + token for token in range(size)] for row, size in enumerate(sizes)]
    built = trainer(TOKENIZER, data=PACKED, max_length=limit)
    examples = built.prepare("train", [{"input_ids": text} for text in texts], ALL)
    seen: list[int] = []
    for example in examples:
        for piece in np.split(example["input_ids"], np.cumsum(example["lengths"])[:-1]):
            assert 1 < len(piece) <= limit  # a single token would predict nothing
            assert (np.diff(piece) == 1).all()
            seen += piece.tolist()
    assert sorted(seen) == sum(texts, [])  # noqa: RUF017
    assert examples.report.cut == 0


def test_a_long_text_ends_with_eos_where_it_ends_and_nowhere_else() -> None:
    tokens = tokenizer()
    text = "a deck " * 100
    whole = [*tokens(text)["input_ids"], tokens.eos_token_id]
    examples = trainer(tokens, data=PACKED, max_length=32).prepare("train", [{"text": text}], ALL)
    assert np.concatenate([example["input_ids"] for example in examples]).tolist() == whole
    (cut,) = trainer(tokens, max_length=32).prepare("train", [{"text": text}], ALL)
    assert cut["input_ids"].tolist() == whole[:32]


def test_conversations_are_cut_at_the_limit_as_without_packs(caplog: pytest.LogCaptureFixture) -> None:
    rows = [chat("Yes. " * 50), chat("No.")]
    with caplog.at_level(logging.INFO, "oumi_plugins"):
        examples = trainer(tokenizer(), data=PACKED, max_length=40).prepare("train", rows, ALL)
    assert sorted(length for example in examples for length in example["lengths"].tolist())[-1] == 40
    assert "data.train: 1 of 2 rows cut to 40 tokens" in caplog.text
    assert "data.train: 2 sequences in 2 packs of at most 40 tokens, which are" in caplog.text


def test_the_label_with_which_a_sequence_begins_is_the_ignore_index_of_the_configuration() -> None:
    built = trainer(tokenizer(), data=PACKED, training="  label_ignore_index: -7\n")
    (example,) = built.prepare("train", [{"input_ids": [5, 6]}, {"input_ids": [8, 9, 10]}], ALL)
    assert example["lengths"].tolist() == [2, 3]
    assert example["labels"].tolist() == [-7, 6, -7, 9, 10]
    assert example["input_ids"].tolist() == [5, 6, 8, 9, 10]


def test_a_pack_needs_a_size() -> None:
    tokens = tokenizer()
    tokens.model_max_length = int(1e30)
    with pytest.raises(ConfigError, match=r"model.model_max_length: data.train.pack fills examples up to this length"):
        trainer(tokens, data=PACKED).prepare("train", [{"text": "a"}], ALL)


def test_a_split_that_does_not_pack_has_one_sequence_an_example() -> None:
    rows = [chat("Yes."), chat("No.")]
    data = f"{PACKED}  validation:\n    datasets:\n      - dataset_name: text_sft\n"
    built = trainer(tokenizer(), data=data)
    assert len(built.prepare("train", rows, ALL)) == 1
    examples = built.prepare("validation", rows, ALL)
    assert [sorted(example) for example in examples] == [["input_ids", "labels"]] * 2
    assert [examples.sources(index) for index in range(2)] == [[0], [1]]


@pytest.mark.parametrize(
    ("row", "column", "same"),
    [
        ({"text": "no", "story": "a deck"}, "story", {"text": "a deck"}),
        ({"talk": chat("Yes.")["messages"], "text": "no"}, "talk", chat("Yes.")),
        (chat("Yes.") | {"input_ids": [1, 2]}, "input_ids", {"input_ids": [1, 2]}),
        (chat("Yes.") | {"input_ids": [1, 2]}, "messages", chat("Yes.")),
    ],
)
def test_the_target_column_is_what_is_trained_on(row: dict, column: str, same: dict) -> None:
    (found,) = trainer(tokenizer(), data=f"    target_col: {column}\n").prepare("train", [row], ALL)
    (expected,) = trainer(tokenizer()).prepare("train", [same], ALL)
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()


def test_a_target_column_that_is_not_there_is_an_error_that_lists_the_columns() -> None:
    built = trainer(tokenizer(), data="    target_col: story\n")
    rows: list[Any] = [{"story": "a"}, {"text": "a", "id": 1}]
    with pytest.raises(
        DataError, match=r"data.train, row 1: there is no column 'story' \(target_col\); columns: text, id"
    ):
        built.prepare("train", rows, ALL)


def test_a_run_counts_packs(train: Any) -> None:
    run = train(
        *("--data.train.pack", "--data.train.stream", "--training.max_steps=-1", "--training.num_train_epochs=1"),
        *("--training.per_device_train_batch_size=1", "--model.model_max_length=512"),
        rows=12,
    )
    tokens = run.metrics[-1]["tokens"]
    assert tokens > 512
    assert run.summary.steps == -(-tokens // 512)  # as full as can be: twelve short chats


def test_a_step_on_packs_is_the_step_on_their_rows(train: Any) -> None:
    together = ("--training.max_steps=1", "--training.per_device_train_batch_size=64", "--model.model_max_length=300")
    evaluated = ("--training.eval_strategy=steps", "--training.eval_steps=1")
    packed = [f"--data.{split}.{key}" for split in ("train", "validation") for key in ("pack", "stream")]
    alone = train(*together, *evaluated, rows=20, validation=9, name="alone")
    packs_of = train(*together, *evaluated, *packed, rows=20, validation=9, name="packed")
    for name in ("loss", "grad_norm", "eval_loss"):
        assert packs_of.figures(name) == pytest.approx(alone.figures(name), rel=1e-5)
    assert packs_of.metrics[0]["tokens"] == alone.metrics[0]["tokens"]
    other = alone.model.state_dict()
    for name, weight in packs_of.model.state_dict().items():
        assert torch.allclose(weight, other[name], atol=1e-6), name
