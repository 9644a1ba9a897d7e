"""Preparation: rows are read once, nothing is done twice, and the key holds all that matters and nothing else."""

from __future__ import annotations

import datetime
import decimal
import importlib.metadata
import logging
import os
import pickle
import random
import shutil
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from oumi_kernel import CheckpointError, DataError
from oumi_kernel.config import TrainTarget
from oumi_plugins.trainers import _preparation
from oumi_plugins.trainers._fingerprint import row_bytes
from tests.conftest import QUICKSTART
from tests.trainers.test_examples import chat, lists, tokenizer, trainer

ALL, TURNS = TrainTarget.ALL_TOKENS, TrainTarget.ALL_ASSISTANT_TURNS
PACKED = "    pack: true\n    stream: true\n"
ROWS: list[dict[str, Any]] = [chat(f"Answer {n}.") for n in range(40)]
LEAVES_OUT = "{% for m in messages if m['role'] != 'system' %}"
STRFTIME = "{% set today = strftime_now('%d %b %Y') %}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty cache and blocks of eight rows; return the cache's folder."""
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_preparation, "BLOCK_ROWS", 8)
    return tmp_path / "prepared"


def taken(caplog: pytest.LogCaptureFixture) -> list[tuple[int, int]]:
    """Return (rows prepared, rows taken from the cache) of every preparation that was logged."""
    found = [record for record in caplog.records if "taken from the cache" in record.getMessage()]
    caplog.clear()
    return [(record.args[3], record.args[4]) for record in found]  # pyright: ignore


class Recorded(Sequence[Any]):
    """Rows that note which of them are asked for."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows, self.asked = rows, []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if index < len(self.rows):
            self.asked.append(index)
        return self.rows[index]


def test_the_second_time_everything_is_taken_from_the_cache(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "oumi_plugins")
    first = trainer(tokenizer()).prepare("train", ROWS, TURNS)
    assert f"0 taken from the cache in {cache}" in caplog.text
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    second = trainer(tokenizer()).prepare("train", ROWS, TURNS)
    assert taken(caplog) == [(40, 0), (0, 40)]
    assert lists(second) == lists(first)
    assert second.fingerprint == first.fingerprint
    assert set(before) == set(cache.iterdir())
    assert all(path.stat().st_mtime_ns > moment for path, moment in before.items())  # used, so not swept


def test_rows_are_read_once_and_in_order_whether_they_are_cached_or_not() -> None:
    for _ in range(2):
        rows = Recorded(ROWS)
        trainer(tokenizer()).prepare("train", rows, TURNS)
        assert rows.asked == list(range(40))


def test_examples_name_the_rows_that_they_come_from() -> None:
    silent = {"messages": [{"role": "user", "content": "Why?"}]}
    rows = [silent if n % 3 == 0 else chat(f"Answer {n}.") for n in range(30)]
    examples = trainer(tokenizer()).prepare("train", rows, TURNS)
    kept = [n for n in range(30) if n % 3]
    assert [examples.sources(index) for index in range(len(examples))] == [[n] for n in kept]
    assert examples.lengths.tolist() == [len(example["input_ids"]) for example in examples]
    assert examples.lengths.dtype == np.int32
    texts = [tokenizer().decode(example["input_ids"]) for example in examples]
    assert all(f"Answer {n}." in text for n, text in zip(kept, texts, strict=True))
    assert (examples.report.rows, examples.report.used) == (30, 20)
    assert examples.report.dropped == {"no supervised token": 10}
    assert lists(examples[-2:]) == lists(examples)[-2:]
    with pytest.raises(IndexError):
        examples[20]


def test_examples_are_sent_to_another_process_as_a_path() -> None:
    for data in ("", PACKED):
        examples = trainer(tokenizer(), data=data).prepare("train", ROWS, TURNS)
        sent = pickle.dumps(examples)
        assert len(sent) == len(pickle.dumps(trainer(tokenizer(), data=data).prepare("train", ROWS[:8], TURNS))) < 500
        assert lists(pickle.loads(sent)) == lists(examples)  # noqa: S301 - our own


def test_what_is_changed_in_an_example_is_not_changed_on_the_disk() -> None:
    examples = trainer(tokenizer()).prepare("train", ROWS, TURNS)
    before = lists(examples)
    examples[0]["input_ids"][:] = 0
    examples[0]["labels"][:] = 0
    assert lists(examples) == before


def test_rows_that_were_added_or_changed_are_all_that_is_done_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "oumi_plugins")
    trainer(tokenizer()).prepare("train", ROWS[:32], TURNS)
    longer = trainer(tokenizer()).prepare("train", ROWS, TURNS)
    changed = trainer(tokenizer()).prepare("train", [chat("Another."), *ROWS[1:]], TURNS)
    assert taken(caplog) == [(32, 0), (8, 32), (8, 32)]
    assert len({longer.fingerprint, changed.fingerprint}) == 2
    assert lists(changed)[1:] == lists(longer)[1:]
    assert lists(changed)[0] != lists(longer)[0]


def with_token(tokens: Any) -> Any:
    tokens.add_tokens(["deck"])
    return tokens


def with_bos(tokens: Any) -> Any:
    start = tokens.convert_tokens_to_ids("<|im_start|>")
    tokens.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    return tokens


def with_attribute(name: str, value: Any) -> Callable[[Any], Any]:
    def change(tokens: Any) -> Any:
        setattr(tokens, name, value)
        return tokens

    return change


def fingerprint(change: Callable[[Any], Any] = lambda tokens: tokens, **settings: Any) -> str:
    rows, target = settings.pop("rows", ROWS[:3]), settings.pop("target", TURNS)
    return trainer(change(tokenizer()), **settings).prepare("train", rows, target).fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        {"change": with_token},
        {"change": with_bos},
        {"change": lambda tokens: tokens.add_special_tokens({"extra_special_tokens": [AddedToken("<x>")]}) and tokens},
        {"change": with_attribute("eos_token", "<|im_start|>")},
        {"change": with_attribute("split_special_tokens", True)},
        {"change": lambda tokens: with_attribute("chat_template", "{# other #}" + tokens.chat_template)(tokens)},
        {"target": ALL},
        {"max_length": 300},
        {"model": "  model_max_length: 300\n"},
        {"model": "  chat_template_kwargs: {thinking: true}\n"},
        {"training": "  label_ignore_index: -1\n"},
        {"data": PACKED},
        {"data": "    target_col: messages\n"},
        {"rows": ROWS[1:4]},
        {"rows": ROWS[2::-1]},
        {"rows": [*ROWS[:2], chat("Answer 2!")]},
        {"rows": [*ROWS[:2], ROWS[2] | {"tools": [{"name": "f"}]}]},
    ],
)
def test_whatever_matters_is_part_of_the_key(changed: dict[str, Any]) -> None:
    assert fingerprint(**changed) != fingerprint()


@pytest.mark.parametrize("library", ["oumi-kernel", "tokenizers", "transformers", "jinja2"])
def test_the_versions_of_what_computes_are_part_of_the_key(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, version = fingerprint(), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0" if name == library else version(name))
    assert fingerprint() != before


def test_a_template_that_writes_the_date_is_rendered_again_on_another_day(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tomorrow(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return datetime.date(2031, 1, 1)

    dated = with_attribute("chat_template", STRFTIME + tokenizer().chat_template)
    before = fingerprint(), fingerprint(dated)
    monkeypatch.setattr(datetime, "date", Tomorrow)
    assert fingerprint() == before[0]
    assert fingerprint(dated) != before[1]


def called(tokens: Any) -> Any:
    tokens(["a", "a b c"], padding=True, truncation=True, max_length=2)  # which the tokenizer remembers
    return tokens


@pytest.mark.parametrize(
    "changed",
    [
        {"training": "  output_dir: elsewhere\n  learning_rate: 0.3\n  per_device_train_batch_size: 3\n  seed: 9\n"},
        {"model": "  torch_dtype_str: bfloat16\n"},
        {"data": "        dataset_path: ./other.jsonl\n        shuffle: true\n    stream: true\n"},
        {"change": called},
        {"change": with_attribute("padding_side", "left")},
        {"save_total_limit": 3},
    ],
)
def test_nothing_else_is_part_of_the_key(changed: dict[str, Any]) -> None:
    assert fingerprint(**changed) == fingerprint()


def test_neither_the_place_of_a_tokenizer_nor_the_name_of_a_split_is_part_of_the_key(tmp_path: Path) -> None:
    shutil.copytree(QUICKSTART / "model", tmp_path / "copy")
    moved = AutoTokenizer.from_pretrained(tmp_path / "copy")
    examples = trainer(moved).prepare("validation", ROWS[:3], TURNS)
    assert examples.fingerprint == fingerprint()


VALUES: list[Any] = [
    *(1, 1.0, True, "1", b"1", decimal.Decimal(1), [1], (1,), np.int64(1), "MQ=="),
    *(None, float("nan"), float("inf"), "NaN", "\ud800", "\ufffd", 2**70, str(2**70), -0.0, 0.0),
    *(datetime.date(2026, 1, 2), "2026-01-02", datetime.datetime(2026, 1, 2), "2026-01-02T00:00:00"),
    *(np.array([1, 2]), np.array([1, 2], np.int32), np.array([[1, 2]]), [1, 2], np.array([1, None], object)),
    *({}, [], ["a", "b"], ["ab"], {1: "a"}, {"1": "a"}, {"a": 1, "b": 2}, {"b": 2, "a": 1}),
]
ALIKE: list[Any] = [{}, *({"a": value} for value in VALUES)]


def test_rows_that_differ_in_anything_have_other_bytes_and_equal_rows_the_same() -> None:
    assert len({row_bytes(row, "here") for row in ALIKE}) == len(ALIKE)
    for row in ALIKE:
        assert row_bytes(row, "here") == row_bytes(pickle.loads(pickle.dumps(row)), "there")  # noqa: S301


def test_a_row_that_has_no_bytes_is_an_error_that_names_it() -> None:
    rows = [ROWS[0], ROWS[1] | {"image": object()}]
    with pytest.raises(DataError, match=r"data.train, row 1: a builtins.object is nothing that this trainer can tell"):
        trainer(tokenizer()).prepare("train", rows, TURNS)


@pytest.mark.parametrize("values", [[1.5], ["a"], [None], [2**40], [[1]], [True]])
def test_tokens_are_whole_numbers(values: list[Any]) -> None:
    with pytest.raises(DataError, match=r"data.train, row 0: input_ids: "):
        trainer(tokenizer()).prepare("train", [{"input_ids": values}], ALL)


def test_rows_of_arrays_are_the_same_examples_as_rows_of_lists() -> None:
    row = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    array = {name: np.array(values, np.uint16 if name == "input_ids" else np.int64) for name, values in row.items()}
    assert lists(trainer(tokenizer()).prepare("train", [array, row], ALL)) == [row, row]


@pytest.mark.parametrize("number", [0, 8, 21])
def test_a_row_that_cannot_be_used_is_named_by_its_number_in_the_split(number: int) -> None:
    rows = [*ROWS[:number], {"input_ids": ["one"]}, *ROWS]
    with pytest.raises(DataError, match=rf"data.train, row {number}: input_ids: expected a list of token ids"):
        trainer(tokenizer()).prepare("train", rows, TURNS)


def test_a_damaged_entry_is_made_again_and_nothing_else(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "oumi_plugins")
    first = trainer(tokenizer()).prepare("train", ROWS, TURNS)
    expected = lists(first)
    path = next(path for path in sorted(cache.iterdir()) if path.stem != first.fingerprint)
    path.write_bytes(path.read_bytes()[:-1])
    assert lists(trainer(tokenizer()).prepare("train", ROWS, TURNS)) == expected
    assert f"the cached data in {path} is damaged" in caplog.text
    assert taken(caplog) == [(40, 0), (8, 32)]
    (cache / f"{first.fingerprint}.safetensors").write_bytes(b"")
    assert lists(trainer(tokenizer()).prepare("train", ROWS, TURNS)) == expected


def in_a_fork(work: Callable[[], None]) -> int:
    """Return the number of a process that does some work and ends with 0, or with 1 if it failed."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:  # noqa: BLE001 - the child must never go on as the test
        os._exit(1)
    os._exit(0)


def test_after_a_kill_at_any_moment_the_next_preparation_is_right_and_goes_on(cache: Path) -> None:
    expected = lists(trainer(tokenizer()).prepare("train", ROWS, TURNS))
    shutil.rmtree(cache)
    built, generator, done = trainer(tokenizer()), random.Random(1), 0
    for _ in range(12):
        child = in_a_fork(lambda: built.prepare("train", ROWS, TURNS) and None)
        time.sleep(generator.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        whole = {path.name for path in cache.glob("*.safetensors")} if cache.exists() else set()
        assert len(whole) >= done
        done = len(whole)
    assert lists(built.prepare("train", ROWS, TURNS)) == expected
    assert len(list(cache.glob("*.safetensors"))) == 6  # five blocks and what puts them together


def test_several_processes_may_prepare_the_same_at_once(cache: Path) -> None:
    built = trainer(tokenizer())
    children = [in_a_fork(lambda: built.prepare("train", ROWS, TURNS) and None) for _ in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(list(cache.iterdir())) == 6
    assert len(built.prepare("train", ROWS, TURNS)) == 40


def slow_to_render(tokens: Any) -> Any:
    """Make a row take a tenth of a second."""
    work = "{% for i in range(300) %}{% for j in range(300) %}{% endfor %}{% endfor %}"
    tokens.chat_template = work + tokens.chat_template
    return tokens


@pytest.mark.parametrize("ends", ["killed", "fails"])
def test_when_the_process_that_prepares_ends_the_one_that_waits_for_it_does_its_work(cache: Path, ends: str) -> None:
    built = trainer(slow_to_render(tokenizer()))
    rows = ROWS[:16] if ends == "killed" else [*ROWS[:12], {"input_ids": ["one"]}]
    first = in_a_fork(lambda: built.prepare("train", rows, TURNS) and None)
    while not list(cache.with_name("prepared-locks").glob("*")):
        time.sleep(0.001)
    os.kill(first, signal.SIGSTOP)  # however slow this machine is, it is not done before the other one waits
    waiting = in_a_fork(lambda: built.prepare("train", rows, TURNS) and None)
    time.sleep(0.1)
    os.kill(first, signal.SIGKILL if ends == "killed" else signal.SIGCONT)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in (first, waiting)]
    assert codes == ([-signal.SIGKILL, 0] if ends == "killed" else [1, 1])
    assert len(list(cache.glob("*.safetensors"))) == (3 if ends == "killed" else 1)  # no half of a block
    assert not list(cache.glob(".tmp-*"))


def test_a_folder_that_cannot_be_written_ends_the_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="OUMI_CACHE_DIR names another folder"):
        trainer(tokenizer()).prepare("train", ROWS, TURNS)


class Counted(Sequence[Any]):
    """Rows of tokens that are made when they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        return ({"input_ids": [index % 900] * 100} for index in range(self._count))


def test_memory_does_not_grow_with_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_preparation, "BLOCK_ROWS", 512)
    built = trainer(tokenizer())
    built.prepare("train", Counted(512), ALL)  # what is made once

    def peak(rows: int) -> int:
        tracemalloc.start()
        assert len(built.prepare("train", Counted(rows), ALL)) == rows
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    small, large = peak(1024), peak(4096)
    assert large < small + 4096 * 40  # of 4096 * 100 * 8 and more


def test_what_a_template_leaves_out_is_said_again_when_rows_come_from_the_cache(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = tokenizer()
    tokens.chat_template = tokens.chat_template.replace("{% for m in messages %}", LEAVES_OUT)
    rows = [*ROWS[:20], {"messages": [{"role": "system", "content": "Be brief."}, *chat("It is.")["messages"]]}]
    said = "data.train: the chat template leaves out the text of system turns: 1 times, first in data.train, row 20"
    for _ in range(2):
        caplog.clear()
        trainer(tokens).prepare("train", rows, TURNS)
        assert said in caplog.text
    caplog.clear()
    trainer(tokens).prepare("validation", rows[16:], TURNS)  # another block, other numbers
    assert said.replace("row 20", "row 4").replace("data.train", "data.validation") in caplog.text
