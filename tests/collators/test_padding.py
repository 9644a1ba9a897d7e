"""Padding is known by length, so no token's id decides what is learned."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from oumi_kernel.loading import load_text
from oumi_plugins.collators._padding import PaddingCollator
from tests.conftest import minimal_yaml

EXAMPLES = [{"input_ids": [5, 6, 2], "labels": [-100, 6, 2]}, {"input_ids": [7], "labels": [7]}]


def tokenizer(pad: int | None, side: str = "right") -> SimpleNamespace:
    return SimpleNamespace(pad_token_id=pad, padding_side=side)


@pytest.mark.parametrize("pad", [0, 2, 7, None])
def test_labels_do_not_depend_on_the_padding_token(pad: int | None) -> None:
    batch = PaddingCollator(tokenizer(pad), None, None)(EXAMPLES)
    assert batch["labels"].tolist() == [[-100, 6, 2], [7, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["input_ids"][0].tolist() == [5, 6, 2]
    assert all(tensor.dtype is torch.int64 for tensor in batch.values())


def test_the_tokenizers_side_and_the_multiple_are_kept() -> None:
    batch = PaddingCollator(tokenizer(9, "left"), -7, 4)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[9, 5, 6, 2], [9, 9, 9, 7]]
    assert batch["labels"].tolist() == [[-7, -100, 6, 2], [-7, -7, -7, 7]]


@pytest.mark.parametrize(
    ("name", "target"),
    [("text_with_padding", "all_tokens"), ("text_completions_only_with_padding", "all_assistant_turns")],
)
def test_a_collator_says_what_is_learned(name: str, target: str) -> None:
    from oumi_kernel.plugins import Kernel, resolve, scan

    loaded = load_text(minimal_yaml(data=f"    collator_name: {name}\n"), "c")
    assert Kernel(resolve(loaded, scan())).collator_train_target("train") == target
