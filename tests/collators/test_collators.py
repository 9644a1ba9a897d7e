"""Batches: padded by length, on the right, with labels that padding never enters."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from oumi_kernel import DataError
from oumi_kernel.config import ModelParams, TrainingConfig, TrainingParams
from oumi_kernel.contracts import Collator, Run
from oumi_kernel.testing import check_component
from oumi_plugins.collators._padding import PaddingCollator
from oumi_plugins.collators.text_completions_only_with_padding import TextCompletionsOnlyWithPadding
from oumi_plugins.collators.text_with_padding import TextWithPadding
from tests.conftest import QUICKSTART

BOTH = [TextWithPadding, TextCompletionsOnlyWithPadding]


def without_padding_token() -> Any:
    return SimpleNamespace(pad_token_id=None, padding_side="right")


def build(component: Any = TextWithPadding, tokenizer: Any = None, ignore: int | None = None, **kwargs: Any) -> Any:
    model = ModelParams(model_name="m", model_max_length=kwargs.pop("model_max_length", None))
    config = TrainingConfig(model=model, training=TrainingParams(label_ignore_index=ignore))
    return component().oumi_build_collator(
        params=component.params_type(**kwargs),
        tokenizer=tokenizer or SimpleNamespace(pad_token_id=9, padding_side="left"),
        run=Run(config=config, folder=Path()),
    )


@pytest.mark.parametrize("component", BOTH)
def test_it_is_a_sound_component_that_builds_a_collator(component: Any) -> None:
    assert check_component(component, "collators") is component
    assert isinstance(build(component), Collator)


def test_examples_are_padded_on_the_right_to_the_longest() -> None:
    batch = build()(
        [
            {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
            {"input_ids": torch.tensor([4]), "labels": torch.tensor([4])},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_padding_token_within_an_example_is_no_padding() -> None:
    batch = build()([{"input_ids": [1, 9], "labels": [-100, 9]}, {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}])
    assert batch["attention_mask"][0].tolist() == [1, 1, 0]
    assert batch["labels"][0].tolist() == [-100, 9, -100]


def test_a_tokenizer_without_a_padding_token_serves() -> None:
    batch = build(tokenizer=without_padding_token())(
        [{"input_ids": [5], "labels": [5]}, {"input_ids": [5, 6], "labels": [5, 6]}]
    )
    assert batch["labels"].tolist() == [[5, -100], [5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]


def test_the_ignore_index_of_the_section_is_the_label_of_padding() -> None:
    batch = build(ignore=-1)([{"input_ids": [1], "labels": [1]}, {"input_ids": [1, 2], "labels": [1, 2]}])
    assert batch["labels"].tolist() == [[1, -1], [1, 2]]


def test_the_width_is_a_multiple_of_what_is_asked_for() -> None:
    assert build(pad_to_multiple_of=8)([{"input_ids": [1] * 9, "labels": [1] * 9}])["input_ids"].shape == (1, 16)
    assert build(pad_to_multiple_of=8)([{"input_ids": [1] * 8, "labels": [1] * 8}])["input_ids"].shape == (1, 8)


@given(st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=9), min_size=1, max_size=5), st.integers(1, 5))
def test_nothing_of_an_example_is_lost_or_added(examples: list[list[int]], multiple: int) -> None:
    collate = PaddingCollator(without_padding_token(), multiple=multiple)
    batch = collate([{"input_ids": ids, "labels": ids} for ids in examples])
    real = batch["attention_mask"].bool()
    assert batch["input_ids"][real].tolist() == [token for ids in examples for token in ids]
    assert (batch["labels"] != -100).equal(real)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"input_ids": [1, 2], "labels": [1]}, r"2 tokens and 1 labels"),
        ({"input_ids": [], "labels": []}, r"an example has no tokens"),
        ({"input_ids": [1]}, r"an example has no labels; its keys: input_ids"),
        ({"input_ids": [1] * 5, "labels": [1] * 5}, r"5 tokens, more than model.model_max_length: 4"),
    ],
)
def test_an_example_that_does_not_fit_is_an_error(example: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(model_max_length=4)([example])


def pack(*lengths: int) -> dict[str, Any]:
    tokens = list(range(1, sum(lengths) + 1))
    return {"input_ids": np.array(tokens), "labels": np.array(tokens), "lengths": np.array(lengths)}


@pytest.mark.parametrize("component", BOTH)
def test_positions_begin_at_nought_with_each_sequence_of_a_pack(component: Any) -> None:
    batch = build(component)([pack(2, 3), pack(1, 1, 1), {"input_ids": [1, 2], "labels": [1, 2]}])
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert batch["position_ids"].dtype == torch.int64
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert batch["labels"].tolist()[1] == [1, 2, 3, -100, -100]


def test_without_packs_there_are_no_positions() -> None:
    assert set(build()([{"input_ids": [1, 2], "labels": [1, 2]}])) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("lengths", [(2, 2), (5, 1), (5, 0), (6, -1), ()])
def test_the_lengths_of_a_pack_add_up_to_its_tokens(lengths: tuple[int, ...]) -> None:
    example = pack(5) | {"lengths": np.array(lengths, np.int64)}
    with pytest.raises(DataError, match=r"an example has 5 tokens, and its lengths are \[.*\]; they must add up"):
        build()([example])


def test_logits_of_a_real_model_do_not_depend_on_padding() -> None:
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model").eval()
    collate = build(tokenizer=AutoTokenizer.from_pretrained(QUICKSTART / "model", padding_side="left"))
    short, long = ({"input_ids": list(range(10, 10 + n)), "labels": list(range(n))} for n in (5, 12))
    batch = collate([short, long])
    with torch.no_grad():
        padded = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0, :5]
        alone = model(torch.tensor([short["input_ids"]])).logits[0]
    assert torch.allclose(padded, alone, atol=1e-5)


def test_which_tokens_are_trained_on_is_the_collators_choice_when_nobody_says() -> None:
    assert [component.train_target for component in BOTH] == ["all_tokens", "all_assistant_turns"]


def test_templates_of_older_recipes_are_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build(TextCompletionsOnlyWithPadding, response_template="<|assistant|>", instruction_template="<|user|>")
    assert "collator_kwargs.response_template has no effect" in caplog.text
    assert "collator_kwargs.instruction_template has no effect" in caplog.text
    assert "end_of_turn" not in caplog.text
