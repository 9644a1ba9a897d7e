"""Local files into conversations: every form, every kind of file, every complaint with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oumi_kernel import ConfigError, DataError
from oumi_kernel.config import DatasetParams, ModelParams, TrainingConfig
from oumi_kernel.contracts import Run
from oumi_plugins.datasets.hub import Hub, HubParams
from oumi_plugins.datasets.text_sft import TextSft, TextSftParams

RUN = Run(config=TrainingConfig(model=ModelParams(model_name="m")), folder=Path())
TURNS = [{"role": "user", "content": " Ärger\n"}, {"role": "assistant", "content": "OK  "}]


def load(path: Path, split: str = "train", form: str = "auto") -> list:
    dataset = DatasetParams(dataset_name="text_sft", dataset_path=str(path), split=split)
    return list(TextSft().oumi_load_dataset(TextSftParams(format=form), dataset, RUN))


def write(folder: Path, *rows: object, name: str = "d.jsonl") -> Path:
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    return folder / name


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"conversation": {"messages": TURNS}},
        {"instruction": " Ärger\n", "input": "", "output": "OK  "},
        {"instruction": " Ärger\n", "output": "OK  "},
        {"conversations": [{"from": "human", "value": " Ärger\n"}, {"from": "gpt", "value": "OK  "}]},
        {"prompt": " Ärger\n", "completion": "OK  "},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": " Ärger\n"}]}, TURNS[1]]},
    ],
    ids=lambda row: "-".join(row),
)
def test_every_form_becomes_the_same_conversation_with_its_text_untouched(tmp_path: Path, row: dict) -> None:
    assert load(write(tmp_path, row)) == [{"messages": TURNS}]


def test_alpacas_input_follows_the_instruction(tmp_path: Path) -> None:
    (row,) = load(write(tmp_path, {"instruction": "Add.", "input": "1, 2", "output": "3"}))
    assert row["messages"][0]["content"] == "Add.\n\n1, 2"


def test_tools_and_tool_calls_are_kept(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "content": "3", "tool_call_id": "1"}
    (row,) = load(write(tmp_path, {"messages": [TURNS[0], call, result], "tools": [{"name": "f"}]}))
    assert row["tools"] == [{"name": "f"}]
    assert row["messages"][1]["tool_calls"] == call["tool_calls"]
    assert row["messages"][2] == result


def test_json_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"messages": TURNS}, {"messages": TURNS[:1]}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    assert load(tmp_path / "d.json") == load(tmp_path / "d.parquet") == rows


@pytest.mark.parametrize(
    ("split", "rows"), [("train", 10), ("train[:3]", 3), ("train[7:]", 3), ("train[50%:]", 5), ("validation[-2:]", 2)]
)
def test_a_split_may_be_a_slice(tmp_path: Path, split: str, rows: int) -> None:
    assert len(load(write(tmp_path, *[{"messages": TURNS}] * 10), split)) == rows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, r"d\.jsonl:2: a row with the keys text is no conversation. Known forms: messages;"),
        ({"messages": []}, r"d\.jsonl:2: the conversation has no turns"),
        ({"messages": "x"}, r"d\.jsonl:2: 'messages' must be a list, got str"),
        ({"messages": [{"role": "usr", "content": "x"}]}, r"turn 0 has the role 'usr'; known: system"),
        ({"messages": [TURNS[0], {"role": "assistant"}]}, r"turn 1 has no text: content is NoneType"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"turn 0 holds an item of type 'image'"),
        ({"messages": ["x"]}, r"turn 0 is str; expected an object"),
        ({"instruction": 3, "output": "x"}, r"'instruction' must be text, got int"),
        ({"conversations": [{"from": "me", "value": "x"}]}, r"turn 0 is from 'me'; known: human"),
        (["x"], r"d\.jsonl:2: expected an object, got list"),
    ],
)
def test_a_malformed_row_is_named_by_file_line_and_turn(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, {"messages": TURNS}, row))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b"{}\n{", r"d\.jsonl:2: not JSON|no conversation"),
        ("d.jsonl", b"", r"holds no rows"),
        ("d.jsonl", b"\xff\xfe", r"is not UTF-8 text"),
        ("d.json", b"{}", r"expected a list of rows, got dict"),
        ("d.parquet", b"PAR1", r"is no readable parquet file"),
        ("d.csv", b"a,b", r"no file of a kind that can be read: \.jsonl, \.json, \.parquet"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name)


def test_a_missing_file_says_what_the_folder_holds(tmp_path: Path) -> None:
    write(tmp_path, {"messages": TURNS})
    with pytest.raises(DataError, match=r"there is no file .*holds: d\.jsonl"):
        load(tmp_path / "e.jsonl")
    with pytest.raises(ConfigError, match="reads a local file: give its path"):
        TextSft().oumi_load_dataset(TextSftParams(), DatasetParams(dataset_name="text_sft"), RUN)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["messages", "role", "content", "conversation", "type", "text", "from", "value", "prompt"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_is_a_conversation_or_our_own_error(tmp_path_factory: pytest.TempPathFactory, row: object) -> None:
    try:
        load(write(tmp_path_factory.mktemp("row"), row))
    except DataError as error:
        assert "d.jsonl:1" in str(error)


def hub(tmp_path: Path, rows: list[dict], **params: str) -> list:
    import datasets

    folder = tmp_path / "saved"
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    dataset = DatasetParams(dataset_name="org/name", dataset_path=str(folder))
    return list(Hub().oumi_load_dataset(HubParams(**params), dataset, RUN))


def test_columns_of_a_hub_dataset_are_recognised_or_named(tmp_path: Path) -> None:
    expected = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    rows = [{"q": "a", "r": "b"}]
    assert hub(tmp_path / "1", rows, prompt_column="q", response_column="r") == expected
    assert hub(tmp_path / "2", [{"text": "x"}]) == [{"text": "x"}]
    assert hub(tmp_path / "3", [{"instruction": "a", "input": "", "output": "b"}]) == expected
    with pytest.raises(DataError, match=r"has the columns q, r, none of which is known .* messages_column, or"):
        hub(tmp_path / "4", rows)
    with pytest.raises(DataError, match=r"has no column 'p' \(prompt_column\); columns: q, r"):
        hub(tmp_path / "5", rows, prompt_column="p")


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"the dataset 'org/nowhere' could not be loaded: .* network"):
        Hub().oumi_load_dataset(HubParams(), DatasetParams(dataset_name="org/nowhere"), RUN)
