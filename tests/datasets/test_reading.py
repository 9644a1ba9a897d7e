"""Rows stay on the disk: each is read when it is asked for, in any order, and nothing else is."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import datasets
import pytest

from oumi_kernel import DataError
from tests.datasets.conftest import Rows, Write

BROKEN = "{"


def line(number: int, text: str = "A") -> str:
    return json.dumps({"prompt": str(number), "completion": text})


def number(row: dict) -> int:
    return int(row["messages"][0]["content"])


def test_rows_come_in_any_order_from_a_file_with_empty_lines_and_long_characters(rows: Rows, write: Write) -> None:
    lines = [text for n in range(50) for text in (line(n, "é🙂" * n), "", " ")]
    found = rows("text_sft", dataset_path=write(*lines))
    order = list(range(50)) * 2
    random.Random(1).shuffle(order)
    assert [number(found[n]) for n in order] == order
    assert found[7]["messages"][1]["content"] == "é🙂" * 7
    assert found[-1] == found[49]
    with pytest.raises(IndexError):
        found[50]


def test_a_part_of_a_part_is_that_part(rows: Rows, write: Write) -> None:
    found = rows("text_sft", dataset_path=write(*map(line, range(10))), split="train[2:8]")
    assert [number(row) for row in found[1:4]] == [3, 4, 5]
    assert [number(row) for row in found[::-2]] == [7, 5, 3]


def test_a_row_is_read_when_it_is_asked_for_and_named_by_its_line(rows: Rows, write: Write) -> None:
    found = rows("text_sft", dataset_path=write(line(0), "", BROKEN, line(2)))
    assert len(found) == 3
    assert number(found[2]) == 2
    with pytest.raises(DataError, match=r"rows.jsonl:3: not JSON"):
        found[1]


def test_one_file_has_one_form_also_where_a_part_is_taken(rows: Rows, write: Write) -> None:
    other = json.dumps({"instruction": "Q", "output": "A"})
    found = rows("text_sft", dataset_path=write(line(0), line(1), other), split="train[1:]")
    assert number(found[0]) == 1
    with pytest.raises(
        DataError, match=r"rows.jsonl:3: the row has the form 'alpaca', .*rows.jsonl:1 the form 'prompt"
    ):
        found[1]


def test_a_parquet_file_names_its_rows(rows: Rows, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": ["0", None], "completion": ["A", "A"]}).to_parquet(tmp_path / "rows.parquet")
    found = rows("text_sft", dataset_path="./rows.parquet")
    assert number(found[0]) == 0
    with pytest.raises(DataError, match=r"rows.parquet\[1\]: prompt: expected text, got null"):
        found[1]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_memory_does_not_grow_with_the_text_of_a_file(rows: Rows, write: Write, tmp_path: Path, name: str) -> None:
    text = "word " * 10_000
    datasets.Dataset.from_list([{"prompt": "0", "completion": text}] * 200).to_parquet(tmp_path / "rows.parquet")
    write(*[line(0, text)] * 200)
    rows("text_sft", dataset_path=f"./{name}")  # what libraries keep is not the file's
    tracemalloc.start()
    found = rows("text_sft", dataset_path=f"./{name}")
    assert sum(len(row["messages"][1]["content"]) for row in found) == 200 * len(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000  # of 10 million


def test_the_columns_of_a_named_dataset_in_a_local_file_are_those_of_its_first_rows(rows: Rows, write: Write) -> None:
    lines = [json.dumps({"text": "a"} | ({"story": "b"} if n == 5 else {})) for n in range(8)]
    found = rows("some/stories", dataset_path=write(*lines), dataset_kwargs={"text_column": "story"})
    assert found[5] == {"text": "b"}
    with pytest.raises(DataError, match=r"rows.jsonl:1: story: expected text, got NoneType"):
        found[0]
