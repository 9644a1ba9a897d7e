"""Several processes on the CPU, started by `oumi run --nproc`: the result of one, and what happens to failures."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from oumi_kernel.contracts import World
from oumi_plugins.trainers._order import OrderedBatches, RowBatches, dealt
from tests.strategies.materials import write_run

pytestmark = pytest.mark.slow

STEPS = 8
METRIC = """
import os, time
from pathlib import Path

from oumi_kernel import DataError

class Watching:
    '''Fails, or waits to be killed, in the second process.'''
    def update(self, batch):
        if os.environ.get("RANK") == "1" and Path("trap").exists():
            what = Path("trap").read_text()
            Path("trap").unlink()
            if what == "raise":
                raise DataError("the second process cannot go on")
            os.kill(os.getpid(), 9)
    def compute(self):
        return {"zero": 0.0}
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Return `start(folder, *flags)`: a run of `STEPS` steps of 8 examples into a folder."""
    write_run(
        tmp_path,
        max_steps=STEPS,
        optimizer="sgd",  # Adam divides rounding errors of small gradients by their size
        learning_rate=0.1,
        per_device_eval_batch_size=2,
        eval_steps=4,
        save_steps=2,
    )
    (tmp_path / "watching.py").write_text(METRIC)

    def make(folder: str, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "oumi_kernel", "run", "train.yaml", f"--training.output_dir={folder}", *flags]
        environment = os.environ | {"OUMI_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    return make


def batches(per_device: int, accumulation: int = 1) -> tuple[str, str]:
    return (
        f"--training.per_device_train_batch_size={per_device}",
        f"--training.gradient_accumulation_steps={accumulation}",
    )


def ended(process: subprocess.Popen[str], expected: int = 0) -> str:
    _, text = process.communicate(timeout=300)
    assert process.returncode == expected, text
    return text


def figures(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def assert_same_result(left: Path, right: Path) -> None:
    ours, theirs = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6, msg=name)
    for one, other in zip(figures(left), figures(right), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_two_processes_give_the_result_of_one_and_prepare_each_row_once(tmp_path: Path, start: Start) -> None:
    metric = "--training.metrics_function=token_accuracy"
    ended(start("two", "--nproc", "2", metric, *batches(2, accumulation=2)))
    ended(start("one", metric, *batches(4, accumulation=2)))
    assert_same_result(tmp_path / "two", tmp_path / "one")
    logs = [(tmp_path / "two/logs" / f"rank_{rank}.log").read_text() for rank in range(2)]
    lines = [line for log in logs for line in log.splitlines() if " prepared, " in line]
    assert sum(int(line.split(" s: ")[1].split()[0]) for line in lines) == 61 + 5


def test_an_adapter_is_the_same_where_one_of_two_processes_has_no_example(tmp_path: Path, start: Start) -> None:
    flags = ("--data.train.datasets[0].sample_count=1", "--training.use_peft", "--training.save_steps=0")
    ended(start("two", "--nproc", "2", *flags, *batches(1)))
    ended(start("one", *flags, *batches(2)))
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_process_that_a_launcher_half_describes_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    assert "RANK" in ended(start("out"), expected=2)
    monkeypatch.setenv("RANK", "1")
    assert "MASTER_ADDR is not" in ended(start("out"), expected=2)


def test_the_first_failure_is_the_last_thing_said_and_its_exit_code_is_that_of_the_run(
    tmp_path: Path, start: Start
) -> None:
    (tmp_path / "trap").write_text("raise")
    process = start("out", "--nproc", "2", "--plugin=./watching.py:Watching", "--training.metrics_function=Watching")
    text = ended(process, expected=4)
    assert "the second process cannot go on" in text.strip().splitlines()[-1]
    failure = json.loads((tmp_path / "out/failure.json").read_text())
    assert (failure["rank"], failure["exit_code"]) == (1, 4)


def test_a_request_to_stop_one_process_stops_all_at_a_checkpoint_from_which_another_number_goes_on(
    tmp_path: Path, start: Start
) -> None:
    flags = ("--training.save_steps=0", "--training.max_steps=40")
    process = start("out", "--nproc", "2", "--max-restarts", "2", *flags, *batches(2))
    wait_for(lambda: (tmp_path / "out/metrics.jsonl").exists() and figures(tmp_path / "out"))
    os.kill(worker_of(process, rank=1), signal.SIGTERM)
    assert "is complete" in ended(process, expected=143)
    (saved,) = (tmp_path / "out").glob("checkpoint-*")
    ended(start("out", "--training.try_resume_from_last_checkpoint", *flags, *batches(4)))
    ended(start("calm", *flags, *batches(4)))
    assert_same_result(tmp_path / "out", tmp_path / "calm")
    assert saved.name != "checkpoint-40"


def test_a_run_that_was_asked_to_stop_and_cannot_save_is_not_begun_anew(tmp_path: Path, start: Start) -> None:
    process = start("out", "--nproc", "2", "--max-restarts", "2", "--training.save_steps=0", "--training.max_steps=200")
    wait_for(lambda: (tmp_path / "out/metrics.jsonl").exists() and figures(tmp_path / "out"))
    resource.prlimit(worker_of(process, rank=0), resource.RLIMIT_FSIZE, (100_000, 100_000))  # its disk is full
    os.kill(worker_of(process, rank=1), signal.SIGTERM)
    assert "bytes are free" in ended(process, expected=6).strip().splitlines()[-1]
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_after_a_process_was_killed_all_start_anew_from_the_last_checkpoint(tmp_path: Path, start: Start) -> None:
    watching = ("--plugin=./watching.py:Watching", "--training.metrics_function=Watching")
    (tmp_path / "trap").write_text("kill")
    text = ended(start("out", "--nproc", "2", "--max-restarts", "1", *watching, *batches(4)))
    assert "going on from step" in text
    ended(start("calm", "--nproc", "2", *watching, *batches(4)))
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "calm"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 6))
def test_examples_are_dealt_once_and_tokens_are_even(lengths: list[int], processes: int) -> None:
    shares = dealt(range(len(lengths)), lengths, processes)
    assert sorted(index for share in shares for index in share) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths)


def test_the_examples_of_a_step_do_not_depend_on_the_number_of_processes() -> None:
    lengths = [5, 80, 7, 30, 9, 11, 60, 2, 4, 10, 3]
    whole = OrderedBatches(lengths, 4, seed=1, world=World())
    halves = [OrderedBatches(lengths, 2, seed=1, world=World(rank=rank, size=2)) for rank in range(2)]
    for together, *parts in zip(whole, *halves, strict=True):
        assert sorted(together) == sorted(index for part in parts for index in part)


def test_every_process_has_as_many_batches_of_an_evaluation_and_each_row_is_in_one() -> None:
    turns = [list(RowBatches(5, 2, World(rank=rank, size=2))) for rank in range(2)]
    assert turns == [[[0, 1], [4]], [[2, 3], []]]


def wait_for(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker_of(process: subprocess.Popen[str], rank: int) -> int:
    """Return the number of the process of a rank that a launcher started."""
    found = find_worker(process, rank)
    assert found is not None, f"no process of rank {rank}"
    return found


def find_worker(process: subprocess.Popen[str], rank: int) -> int | None:
    """Return the number of the process of a rank that a launcher started; None while there is none."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and f"\0RANK={rank}\0" in (entry / "environ").read_text():
                return int(entry.name)
        except OSError:
            continue
    return None
