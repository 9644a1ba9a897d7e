"""Datasets by name: here those of a local folder, since no test reaches for a hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from oumi_kernel import DataError
from oumi_kernel.testing import check_component
from oumi_plugins.datasets.hub import Hub, HubParams
from tests.datasets.conftest import Rows, Write

TALK = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return `folder({"column": [...]})`: a dataset as a hub repository holds it, and the name to load it by."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(columns: dict[str, list[Any]]) -> str:
        target = tmp_path / "repository"
        target.mkdir()
        datasets.Dataset.from_dict(columns).to_parquet(str(target / "train.parquet"))
        return "./repository"

    return make


def test_it_is_a_sound_component() -> None:
    assert check_component(Hub, "datasets") is Hub


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": [TALK]},
        {"conversations": [[{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]]},
        {"instruction": ["Q"], "input": [""], "output": ["A"], "text": ["Below is an instruction. Q A"]},
        {"prompt": ["Q"], "response": ["A"]},
    ],
)
def test_conversations_are_known_by_their_columns(rows: Rows, folder: Any, columns: dict) -> None:
    assert list(rows(folder(columns))) == [{"messages": TALK}]


def test_plain_text_and_tokens_pass_through(rows: Rows, folder: Any) -> None:
    assert list(rows(folder({"text": ["some text"], "id": [1]}))) == [{"text": "some text"}]


def test_tokens_pass_through(rows: Rows, folder: Any) -> None:
    assert rows(folder({"input_ids": [[1, 2]], "labels": [[-100, 2]]}))[0] == {"input_ids": [1, 2], "labels": [-100, 2]}


@pytest.mark.parametrize(
    ("columns", "named", "expected"),
    [
        ({"talk": [TALK]}, {"messages_column": "talk"}, {"messages": TALK}),
        ({"q": ["Q"], "a": ["A"]}, {"prompt_column": "q", "response_column": "a"}, {"messages": TALK}),
        ({"story": ["once"], "text": ["no"]}, {"text_column": "story"}, {"text": "once"}),
    ],
)
def test_columns_can_be_named(rows: Rows, folder: Any, columns: dict, named: dict, expected: dict) -> None:
    assert list(rows(folder(columns), dataset_kwargs=named)) == [expected]


@pytest.mark.parametrize(
    ("columns", "column", "expected"),
    [
        ({"story": ["once"], "text": ["no"]}, "story", {"story": "once"}),
        ({"messages": [TALK], "text": ["once"]}, "text", {"text": "once"}),
        ({"talk": [TALK], "text": ["no"]}, "talk", {"talk": TALK}),
        ({"c": [[{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]]}, "c", {"c": TALK}),
        ({"ids": [[1, 2]], "labels": [[-100, 2]], "n": [7]}, "ids", {"ids": [1, 2], "labels": [-100, 2]}),
        ({"prompt": ["Q"], "response": ["A"]}, "messages", {"messages": TALK}),
    ],
)
def test_the_target_column_of_a_split_is_read(
    rows: Rows, folder: Any, columns: dict, column: str, expected: Any
) -> None:
    assert list(rows(folder(columns), target_col=column)) == [expected]


def test_a_reader_may_be_named_and_the_dataset_beside_it(rows: Rows, folder: Any) -> None:
    named = {"hf_dataset_path": folder({"q": ["Q"], "a": ["A"]}), "prompt_column": "q", "response_column": "a"}
    assert list(rows("PromptResponseDataset", dataset_kwargs=named)) == [{"messages": TALK}]


def test_a_slice_of_a_split_and_a_slice_of_the_rows(rows: Rows, folder: Any) -> None:
    found = rows(folder({"text": [str(n) for n in range(10)]}), split="train[2:6]")
    assert len(found) == 4
    assert [row["text"] for row in found[1:3]] == ["3", "4"]
    assert found[-1] == {"text": "5"}
    with pytest.raises(IndexError):
        found[4]


def test_a_known_dataset_may_come_from_a_local_file(rows: Rows, write: Write) -> None:
    path = write(json.dumps({"instruction": "Q", "input": "", "output": "A"}))
    assert list(rows("yahma/alpaca-cleaned", dataset_path=path)) == [{"messages": TALK}]


def test_columns_that_mean_nothing_are_listed_with_the_way_out(rows: Rows, folder: Any) -> None:
    with pytest.raises(DataError, match=r"has the columns a, b, none of which .* prompt_column and response_column"):
        rows(folder({"a": ["x"], "b": ["y"]}))


def test_a_named_column_that_is_not_there_is_listed(rows: Rows, folder: Any) -> None:
    with pytest.raises(DataError, match=r"has no column 'story' \(text_column\); columns: text"):
        rows(folder({"text": ["x"]}), dataset_kwargs={"text_column": "story"})


def test_a_row_that_cannot_be_read_names_the_dataset_and_the_row(rows: Rows, folder: Any) -> None:
    found = rows(folder({"prompt": ["Q", None], "completion": ["A", "A"]}))
    with pytest.raises(DataError, match=r"repository, train, row 1: prompt: expected text, got null"):
        found[-1]


@pytest.mark.parametrize("name", ["no/such-dataset", "./nowhere"])
def test_a_dataset_that_cannot_be_had_is_an_error_of_data(rows: Rows, name: str) -> None:
    with pytest.raises(DataError, match=rf"the dataset '{name}' could not be loaded: .*Check its name"):
        rows(name)


def test_a_split_that_is_not_there_is_an_error_of_data(rows: Rows, folder: Any) -> None:
    with pytest.raises(DataError, match=r"could not be loaded: .*nosplit"):
        rows(folder({"text": ["x"]}), split="nosplit")


def test_half_a_mapping_and_two_mappings_are_refused_when_the_configuration_is_read() -> None:
    assert [path for path, _ in HubParams(prompt_column="q").check()] == ["response_column"]
    assert [path for path, _ in HubParams(messages_column="m", text_column="t").check()] == ["text_column"]
    assert not list(HubParams(prompt_column="q", response_column="a").check())
