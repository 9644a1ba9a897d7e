"""Rows into examples: what is supervised, what is cut, what is dropped, and that nothing is lost unsaid."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from oumi_kernel import DataError
from oumi_kernel.config import TrainTarget
from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text
from oumi_plugins.trainers._examples import Examples
from oumi_plugins.trainers._sft import SftTrainer
from oumi_plugins.trainers.sft import SftParams
from tests.conftest import QUICKSTART, minimal_yaml

ALL = TrainTarget.ALL_TOKENS


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(QUICKSTART / "model")


def trainer(tokens: Any, training: str = "", model: str = "", data: str = "", **params: Any) -> SftTrainer:
    loaded = load_text(minimal_yaml(training=training or "  seed: 1\n", model=model, data=data), "c")
    return SftTrainer(SftParams(**params), tokens, Run(config=loaded.config, folder=loaded.folder))


def lists(examples: Examples) -> list[dict[str, list[int]]]:
    return [{name: array.tolist() for name, array in example.items()} for example in examples]


def chat(answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}]}


def test_text_is_supervised_whole_and_ends_with_eos_once() -> None:
    tokens = tokenizer()
    ids = tokens("A deck.")["input_ids"]
    (example,) = lists(trainer(tokens).prepare("train", [{"text": "A deck."}], ALL))
    assert example["input_ids"] == example["labels"] == [*ids, tokens.eos_token_id]
    (again,) = lists(trainer(tokens).prepare("train", [{"text": "A deck.<|im_end|>"}], ALL))
    assert again == example


def test_text_begins_with_bos_once_also_where_it_brought_its_own() -> None:
    tokens = tokenizer()
    tokens.add_special_tokens({"bos_token": "<|im_start|>"})
    start = tokens.convert_tokens_to_ids("<|im_start|>")
    processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)])
    tokens.backend_tokenizer.post_processor = processor
    assert tokens("<|im_start|>A")["input_ids"][:2] == [start, start]  # what must not reach the model
    for text in ("A deck.", "<|im_start|>A deck."):
        (example,) = lists(trainer(tokens).prepare("train", [{"text": text}], ALL))
        assert example["input_ids"].count(start) == 1
        assert example["input_ids"][0] == start


def test_rows_of_tokens_are_taken_as_they_are() -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 9, -100]}, {"input_ids": [5, 6]}]
    found = lists(trainer(tokenizer()).prepare("train", rows, ALL))
    assert found == [
        {"input_ids": [5, 6, 7], "labels": [-100, 9, -100]},
        {"input_ids": [5, 6], "labels": [5, 6]},
    ]
    with pytest.raises(DataError, match=r"data\.train, row 0: 2 input_ids and 1 labels"):
        trainer(tokenizer()).prepare("train", [{"input_ids": [5, 6], "labels": [5]}], ALL)


def test_the_ignore_index_of_the_configuration_marks_what_is_not_supervised() -> None:
    built = trainer(tokenizer(), training="  label_ignore_index: -1\n")
    (example,) = lists(built.prepare("train", [chat("Yes.")], TrainTarget.ALL_ASSISTANT_TURNS))
    assert -1 in example["labels"]
    assert -100 not in example["labels"]


@pytest.mark.parametrize("padding", ["<|pad|>", "<|im_end|>", None])
def test_the_end_of_turn_is_learnt_whatever_pads(padding: str | None) -> None:
    tokens = tokenizer()
    tokens.pad_token = padding
    (example,) = lists(trainer(tokens).prepare("train", [chat("Yes.")], TrainTarget.ALL_ASSISTANT_TURNS))
    learnt = [label for label in example["labels"] if label != -100]
    assert learnt[-1] == tokens.eos_token_id


def test_the_limit_is_the_trainers_then_the_models_then_the_tokenizers() -> None:
    tokens, row = tokenizer(), {"text": "a deck " * 400}
    assert tokens.model_max_length == 512

    def length(**settings: Any) -> int:
        return len(trainer(tokens, **settings).prepare("train", [row], ALL)[0]["input_ids"])

    assert length(max_length=20, model="  model_max_length: 30\n") == 20
    assert length(model="  model_max_length: 30\n") == 30
    assert length() == 512
    tokens.model_max_length = int(1e30)  # what tokenizers say that know no limit
    assert length() > 512


def test_rows_in_are_rows_used_and_rows_dropped_with_reasons(caplog: pytest.LogCaptureFixture) -> None:
    question = {"messages": [{"role": "user", "content": "Why? " * 40}, {"role": "assistant", "content": "So."}]}
    silent = {"messages": [{"role": "user", "content": "Why?"}]}
    rows = [chat("Yes."), question, silent, chat("No.")]
    with caplog.at_level(logging.INFO, "oumi_plugins"):
        found = lists(trainer(tokenizer(), max_length=30).prepare("train", rows, TrainTarget.ALL_ASSISTANT_TURNS))
    assert len(found) == 2
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(messages) == [
        "data.train: 1 of 4 rows dropped: no supervised token",
        "data.train: 1 of 4 rows dropped: no supervised token within 30 tokens",
    ]


def test_the_smallest_limit_that_is_named_keeps_a_row() -> None:
    rows = [chat("Yes.")]
    with pytest.raises(DataError, match=r"0 of 1 rows .*\(max_length=3; .*keeps a row is (\d+)\)") as caught:
        trainer(tokenizer(), max_length=3).prepare("train", rows, TrainTarget.ALL_ASSISTANT_TURNS)
    smallest = int(str(caught.value).partition("keeps a row is ")[2].partition(")")[0])
    kept = trainer(tokenizer(), max_length=smallest).prepare("train", rows, TrainTarget.ALL_ASSISTANT_TURNS)
    assert len(kept) == 1
    with pytest.raises(DataError, match="0 of 1 rows"):
        trainer(tokenizer(), max_length=smallest - 1).prepare("train", rows, TrainTarget.ALL_ASSISTANT_TURNS)


def test_a_row_of_another_kind_names_its_keys() -> None:
    with pytest.raises(DataError, match=r"data\.validation, row 0: a row with the keys prompt, chosen cannot"):
        trainer(tokenizer()).prepare("validation", [{"prompt": "a", "chosen": "b"}], ALL)


@pytest.mark.parametrize(
    ("training", "examples", "steps"),
    [
        ("  num_train_epochs: 3\n  per_device_train_batch_size: 8\n", 24, 9),
        ("  num_train_epochs: 1\n  per_device_train_batch_size: 1\n  gradient_accumulation_steps: 4\n", 7, 2),
        ("  num_train_epochs: 1\n  per_device_train_batch_size: 4\n  gradient_accumulation_steps: 8\n", 5, 1),
        ("  num_train_epochs: 0.5\n  per_device_train_batch_size: 1\n", 7, 4),
        ("  num_train_epochs: 0.55\n  per_device_train_batch_size: 1\n", 100, 55),
        ("  num_train_epochs: 5\n  max_steps: 2\n  per_device_train_batch_size: 1\n", 7, 2),
        ("  num_train_epochs: -1\n  max_steps: 50\n  per_device_train_batch_size: 1\n", 7, 50),
    ],
)
def test_the_plan_counts_the_steps_that_will_be_done(training: str, examples: int, steps: int) -> None:
    assert trainer(tokenizer(), training=training).plan({"train": [None] * examples}).total_steps == steps


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [5, 99999]}, r"data\.train, row 0: input_ids: 99999 is no token; the tokenizer has 0 to 1023"),
        ({"input_ids": [5, -7]}, "input_ids: -7 is no token"),
        ({"input_ids": [5, 6], "labels": [5, 4096]}, "labels: 4096 is no token"),
    ],
)
def test_tokens_that_the_tokenizer_does_not_have_are_an_error(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        trainer(tokenizer()).prepare("train", [row], ALL)


def test_the_usual_ignore_label_of_token_rows_is_understood_beside_another_one() -> None:
    built = trainer(tokenizer(), training="  label_ignore_index: -5\n")
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, -5]}]
    assert lists(built.prepare("train", rows, ALL)) == [{"input_ids": [5, 6, 7], "labels": [-5, 6, -5]}]
