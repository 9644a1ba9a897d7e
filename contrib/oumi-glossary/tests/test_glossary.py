"""The dataset and the metric, and that the kernel takes them as components."""

from pathlib import Path

import pytest
import torch
from oumi_glossary.dataset import glossary
from oumi_glossary.metric import rare_token_accuracy

from oumi_kernel import DataError
from oumi_kernel.testing import check_component


def test_a_line_becomes_a_question_and_an_answer(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("bug: an unwanted property\n")
    (row,) = glossary(str(tmp_path / "terms.txt"), question="Define {term}.")
    assert [turn["content"] for turn in row["messages"]] == ["Define bug.", "an unwanted property"]


def test_a_line_without_a_colon_is_named(tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("bug: x\nfeature\n")
    with pytest.raises(DataError, match=r"terms\.txt:2: expected 'term: definition', got 'feature'"):
        list(glossary(str(tmp_path / "terms.txt")))


def test_only_rare_tokens_count() -> None:
    labels = torch.tensor([1, 1000, 2000])
    assert rare_token_accuracy(torch.tensor([1, 1000, 3]), labels) == 0.5
    assert rare_token_accuracy(torch.tensor([1, 1, 1]), labels, above=5000) == 0.0


def test_the_kernel_takes_both() -> None:
    assert check_component(glossary, "datasets").params_type.__struct_fields__ == ("question",)
    assert check_component(rare_token_accuracy, "metrics").params_type().above == 1000
