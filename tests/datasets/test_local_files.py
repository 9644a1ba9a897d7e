"""Local files into conversations: forms, kinds of file, splits, and complaints that name file, line and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oumi_kernel import ConfigError, DataError
from oumi_kernel.testing import check_component
from oumi_plugins.datasets.text_sft import TextSft
from tests.conftest import QUICKSTART
from tests.datasets.conftest import Rows, Write

TALK = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
GOOD = json.dumps({"messages": TALK})

SAME = {
    "messages": {"messages": TALK},
    "conversation": {"conversation": {"messages": TALK}},
    "alpaca": {"instruction": "Q", "output": "A"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "prompt_completion": {"prompt": "Q", "completion": "A"},
    "prompt_response": {"prompt": [TALK[0]], "response": [TALK[1]]},
}


@pytest.fixture
def rows(rows: Rows) -> Rows:
    """Return `rows` that reads every row at once."""
    return lambda name, **entry: list(rows(name, **entry))


def test_it_is_a_sound_component() -> None:
    assert check_component(TextSft, "datasets") is TextSft


@pytest.mark.parametrize("form", SAME)
def test_every_form_gives_the_same_conversation(rows: Rows, write: Write, form: str) -> None:
    path = write(json.dumps(SAME[form]))
    assert rows("text_sft", dataset_path=path) == [{"messages": TALK}]
    assert rows("text_sft", dataset_path=path, dataset_kwargs={"format": form}) == [{"messages": TALK}]


def test_the_real_quickstart_file_is_read_whole_and_unchanged(rows: Rows) -> None:
    path = QUICKSTART / "data/train.jsonl"
    expected = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows("text_sft", dataset_path=str(path)) == expected


def test_jsonl_json_parquet_and_a_saved_folder_give_equal_rows(rows: Rows, write: Write, tmp_path: Path) -> None:
    several = [{"messages": [*TALK, {"role": "user", "content": str(n)}]} for n in range(5)]
    table = datasets.Dataset.from_list(several)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    table.save_to_disk(str(tmp_path / "folder"))
    datasets.DatasetDict({"train": table, "validation": table.select([0])}).save_to_disk(str(tmp_path / "both"))
    write(*map(json.dumps, several))
    write(json.dumps(several, indent=1), name="rows.json")
    for name in ("rows.jsonl", "rows.json", "rows.parquet", "folder", "both"):
        assert rows("text_sft", dataset_path=f"./{name}") == several, name
    assert len(rows("text_sft", dataset_path="./both", split="validation")) == 1


@pytest.mark.parametrize("text", ["  spaces \n", "1e5", "٣", "\u2028line", "🙂", "\t\x00", "é"])
def test_text_is_not_changed(rows: Rows, write: Write, text: str) -> None:
    path = write(json.dumps({"instruction": text, "input": text, "output": text}, ensure_ascii=False))
    (row,) = rows("text_sft", dataset_path=path)
    assert [turn["content"] for turn in row["messages"]] == [f"{text}\n\n{text}", text]


def test_a_byte_order_mark_and_empty_lines_are_passed_over(rows: Rows, write: Write) -> None:
    assert len(rows("text_sft", dataset_path=write(b"\xef\xbb\xbf" + GOOD.encode(), "", GOOD + "\r", ""))) == 2


def test_everything_that_a_template_may_use_is_kept(rows: Rows, write: Write) -> None:
    call = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": None},
    ]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    (row,) = rows("text_sft", dataset_path=write(json.dumps({"messages": turns, "tools": json.dumps(tools)})))
    assert row["tools"] == tools
    assert row["messages"] == [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [call | {"function": {"name": "add", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]


def test_a_system_text_beside_the_turns_comes_first(rows: Rows, write: Write) -> None:
    for form in ("alpaca", "sharegpt", "prompt_completion"):
        (row,) = rows("text_sft", dataset_path=write(json.dumps(SAME[form] | {"system": "S"})))
        assert row["messages"] == [{"role": "system", "content": "S"}, *TALK]


def turn(**changes: Any) -> str:
    return json.dumps({"messages": [TALK[0], TALK[1] | changes]})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"rows.jsonl:3: not JSON: "),
        ("[1]", r"rows.jsonl:3: expected an object, got a list \(\[1\]\)"),
        (b'{"messages": "\xff"}', r"rows.jsonl:3: not UTF-8 text at byte 14"),
        ('{"question": 1}', r"rows.jsonl:3: a row with the keys question is no conversation. Known forms: messages; "),
        ('{"messages": null}', r"rows.jsonl:3: messages: expected a list, got null"),
        ('{"messages": []}', r"rows.jsonl:3: the conversation has no turns"),
        (turn(role="gpt"), r"messages\[1\].role: 'gpt' is no role; roles: .*Did you mean 'assistant'\?"),
        (turn(role=None), r"messages\[1\].role: None is no role"),
        (turn(content=None), r"rows.jsonl:3: messages\[1\].content: expected text, got null"),
        (turn(content=7), r"messages\[1\].content: expected text, got a number \(7\)"),
        (turn(content=[{"type": "image_path", "content": "x.png"}]), r"content\[0\].type: 'image_path' is not read"),
        (turn(content="\ud800"), r"half a surrogate pair at character 0 is no text"),
        (turn(tool_calls=[{"function": {}}]), r"tool_calls\[0\]: a tool call has a name"),
        (turn(tool_calls=[{"name": "f", "arguments": "{"}]), r"tool_calls\[0\]: arguments: not JSON"),
        (json.dumps({"messages": TALK, "tools": "x"}), r"tools: not JSON"),
        (
            json.dumps(SAME["alpaca"]),
            r"rows.jsonl:3: the row has the form 'alpaca', .*rows.jsonl:1 the form 'messages'; one",
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_named_by_file_line_and_key(
    rows: Rows, write: Write, line: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        rows("text_sft", dataset_path=write(GOOD, "", line, GOOD))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "Q", "output": None}, r"output: expected text, got null"),
        (SAME["alpaca"] | {"history": [["a", "b"]]}, r"history: earlier turns are not read"),
        (
            {"conversations": [{"from": "bot", "value": "x"}]},
            r"conversations\[0\].from: 'bot' is not known; known: ",
        ),
        ({"conversations": [{"from": "human", "value": 3}]}, r"conversations\[0\].value: expected text, got a number"),
        ({"conversation": []}, r"conversation: expected an object, got a list"),
    ],
)
def test_other_forms_name_their_own_keys(rows: Rows, write: Write, row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows("text_sft", dataset_path=write(json.dumps(row)))


def test_a_form_that_is_asked_for_must_be_the_one_of_every_row(rows: Rows, write: Write) -> None:
    path = write(GOOD)
    with pytest.raises(DataError, match=r"rows.jsonl:1: the key 'instruction' is missing; rows of the form 'alpaca'"):
        rows("text_sft", dataset_path=path, dataset_kwargs={"format": "alpaca"})
    assert len(rows("text_sft", dataset_path=path, dataset_kwargs={"format": "oumi"})) == 1
    with pytest.raises(DataError, match=r"the row has the form 'alpaca', not messages or conversation"):
        rows("text_sft", dataset_path=write(json.dumps(SAME["alpaca"])), dataset_kwargs={"format": "oumi"})


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(10)),
        ("validation", range(10)),
        ("train[:3]", range(3)),
        ("train[4:]", range(4, 10)),
        ("train[2:5]", range(2, 5)),
        ("train[-2:]", range(8, 10)),
        ("train[10%:50%]", range(1, 5)),
        ("train[:100]", range(10)),
    ],
)
def test_a_slice_takes_those_rows(rows: Rows, write: Write, split: str, expected: range) -> None:
    path = write(*(json.dumps({"prompt": str(n), "completion": "A"}) for n in range(10)))
    found = rows("text_sft", dataset_path=path, split=split)
    assert [int(row["messages"][0]["content"]) for row in found] == list(expected)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train+test", r"the split 'train\+test' cannot be read; write name, or name\[start:stop\]"),
        ("train[5]", r"'train\[5\]' cannot be read"),
        ("train[3:3]", r"the split 'train\[3:3\]' is empty: there are 1 rows"),
    ],
)
def test_a_split_that_is_none_is_an_error(rows: Rows, write: Write, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows("text_sft", dataset_path=write(GOOD), split=split)


def test_a_file_that_is_not_there_is_an_error_that_lists_its_neighbours(rows: Rows, write: Write) -> None:
    write(GOOD, name="train.jsonl")
    with pytest.raises(DataError, match=r"there is no file '.*trian.jsonl'. '.*' holds: train.jsonl"):
        rows("text_sft", dataset_path="./trian.jsonl")


def test_a_file_that_is_not_there_is_an_error_that_says_what_could_be_read(rows: Rows, write: Write) -> None:
    write("text", name="notes.txt")
    with pytest.raises(DataError, match=r"there is no file .* holds none that can be read: .jsonl, .json, .parquet"):
        rows("text_sft", dataset_path="./train.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", "\n", r"rows.jsonl holds no rows"),
        ("rows.json", "[]", r"rows.json holds no rows"),
        ("rows.csv", "a,b", r"is no file of a kind that can be read: .jsonl, .json, .parquet"),
        ("rows.parquet", "PAR1", r"rows.parquet is no parquet file that can be read"),
    ],
)
def test_a_file_without_rows_is_an_error(rows: Rows, write: Write, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows("text_sft", dataset_path=write(content, name=name))


def test_a_folder_that_was_not_saved_by_datasets_lists_its_files(rows: Rows, write: Write) -> None:
    write(GOOD)
    with pytest.raises(DataError, match=r"is none that datasets.save_to_disk wrote. '.*' holds: rows.jsonl"):
        rows("text_sft", dataset_path="./")


def test_keys_that_a_local_file_cannot_serve_are_errors(rows: Rows, write: Write) -> None:
    with pytest.raises(ConfigError, match=r"dataset_path: 'text_sft' reads a local file: give its path"):
        rows("text_sft")
    with pytest.raises(ConfigError, match=r"subset: a local file has no subset 'en'"):
        rows("text_sft", dataset_path=write(GOOD), subset="en")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "messages conversation conversations role content tool_calls function name arguments tools from value "
                "instruction input output prompt completion response system type text".split()
            )
            | st.text(max_size=3),
            inner | st.sampled_from(["user", "assistant", "text", "human"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.binary(max_size=30) | JSON.map(lambda value: json.dumps(value).encode()), max_size=3))
def test_whatever_a_file_holds_it_is_read_or_refused_as_data(rows: Rows, write: Write, lines: list[bytes]) -> None:
    path = write(*lines)
    try:
        found = rows("text_sft", dataset_path=path)
    except DataError as error:
        assert "rows.jsonl" in str(error)
    else:
        for row in found:
            for message in row["messages"]:
                message["content"].encode()


def test_keys_that_only_other_rows_have_are_not_there_in_a_row_of_a_table(rows: Rows, tmp_path: Path) -> None:
    def call(**arguments: str) -> dict[str, object]:
        return {"type": "function", "function": {"name": "find", "arguments": arguments}}

    talks = [
        [*TALK[:1], {"role": "assistant", "content": "", "tool_calls": [call(x="a")]}],
        [*TALK[:1], {"role": "assistant", "content": "", "tool_calls": [call(y="b")]}],
    ]
    datasets.Dataset.from_list([{"messages": talk} for talk in talks]).to_parquet(str(tmp_path / "rows.parquet"))
    assert [row["messages"] for row in rows("text_sft", dataset_path="./rows.parquet")] == talks


def test_half_a_surrogate_pair_is_found_at_any_depth_of_a_turn(rows: Rows, write: Write) -> None:
    turn = '{"role": "assistant", "content": "a", "reasoning_content": "\\ud800"}'
    write('{"messages": [' + turn + "]}")
    with pytest.raises(DataError, match=r"messages\[0\]\.reasoning_content: half a surrogate pair"):
        rows("text_sft", dataset_path="./rows.jsonl")
