"""Asked to stop by a signal, as schedulers and terminals send it: in preparation, in training, in evaluation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oumi_kernel.loading import to_yaml
from tests.conftest import QUICKSTART, Install
from tests.trainers.test_checkpoints_killed import complete

SLOW = """
import time
from pathlib import Path
from oumi_kernel import Component, hookimpl, Params

def mark(where, name):
    (Path(where) / name).touch()

class Rows:
    '''Rows that take a minute to read.'''
    def __init__(self, where: str):
        mark(where, "preparing")
        time.sleep(60)
    def __iter__(self):
        return iter(())

class SlowOptimizer(Component):
    '''An optimizer that takes a minute, and holds on to what it catches.'''
    @hookimpl
    def oumi_build_optimizer(self, params, groups, run):
        mark(run.output_dir, "building")
        try:
            time.sleep(60)
        except Exception:
            pass
        raise RuntimeError("not reached")

class SlowMetric:
    '''A metric that takes a while for each batch.'''
    def __init__(self, where: str):
        self.where = where
    def update(self, batch):
        mark(self.where, "evaluating")
        time.sleep(0.3)
    def compute(self):
        return {"seen": 1.0}

class Steps(Component):
    '''Marks that a step is done.'''
    @hookimpl
    def oumi_step_end(self, run, record):
        mark(run.output_dir, f"step-{record.step}")
"""
POINTS = {
    "oumi.datasets": {"slow_rows": "slow:Rows"},
    "oumi.optimizers": {"slow_optimizer": "slow:SlowOptimizer"},
    "oumi.metrics": {"slow_metric": "slow:SlowMetric"},
    "oumi.plugins": {"steps": "slow:Steps"},
}
FIRST = "--data.train.datasets[0]"
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, install: Install) -> Iterator[Start]:
    """Return `start(*flags)`: `oumi run` in a process group of its own, the slow components installed."""
    site = install("oumi-slow", "1.0", POINTS, slow=SLOW)
    rows = (QUICKSTART / "data/train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(rows[:24]))
    source = {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(tmp_path / "train.jsonl")}]}
    config = {
        "model": {"model_name": str(QUICKSTART / "model")},
        "data": {"train": source, "validation": source},
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 5000,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "eval_strategy": "no",
            "optimizer": "adamw",
            "save_steps": 0,
            "enable_tensorboard": False,
            "logging_strategy": "no",
            "try_resume_from_last_checkpoint": True,
        },
    }
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    started: list[subprocess.Popen[str]] = []

    def run(*flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "oumi_kernel", "run", str(tmp_path / "config.yaml"), *flags]
        environment = os.environ | {"PYTHONPATH": str(site)}
        process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, process_group=0
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


def finish(process: subprocess.Popen[str]) -> tuple[str, float]:
    """Return what it wrote to stderr, and how long it took to end."""
    began = time.monotonic()
    _, errors = process.communicate(timeout=100)
    return errors, time.monotonic() - began


def failure(folder: Path) -> dict[str, object]:
    return json.loads((folder / "run/failure.json").read_text())


@pytest.mark.parametrize(
    ("flags", "mark"),
    [
        (
            ("--data.train.datasets[0].dataset_name=slow_rows", "--data.train.datasets[0].dataset_path=null"),
            "preparing",
        ),
        (("--training.optimizer=slow_optimizer",), "building"),
    ],
)
def test_in_preparation_a_run_ends_at_once_and_says_that_nothing_is_lost(
    start: Start, tmp_path: Path, flags: tuple[str, ...], mark: str
) -> None:
    (tmp_path / "run/checkpoint-7").mkdir(parents=True)
    (tmp_path / "run/checkpoint-7/kept").touch()
    where = (f"{FIRST}.dataset_kwargs.where={tmp_path}/run",) if mark == "preparing" else ()
    process = start(*flags, *where)
    wait_for(tmp_path / f"run/{mark}", process)
    process.send_signal(signal.SIGTERM)
    errors, seconds = finish(process)
    assert process.returncode == 143, errors
    assert seconds < 20
    assert "asked to stop before training began: nothing was trained, and nothing is lost." in errors
    assert "Traceback" not in errors
    assert failure(tmp_path) | {"message": ""} == {
        "error": "StopRequested",
        "message": "",
        "rank": 0,
        "exit_code": 143,
    }
    assert (tmp_path / "run/checkpoint-7/kept").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_in_training_a_signal_to_the_whole_group_leaves_a_checkpoint_of_the_step_in_progress(
    start: Start, tmp_path: Path, workers: int
) -> None:
    process = start(
        f"--training.dataloader_num_workers={workers}", "--training.dataloader_persistent_workers=" + str(workers > 0)
    )
    wait_for(tmp_path / "run/step-9", process)
    done = len(list((tmp_path / "run").glob("step-*")))
    os.killpg(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)  # a second one changes nothing
    errors, _ = finish(process)
    assert process.returncode == 143, errors
    (step,) = complete(tmp_path / "run")
    assert done <= step == len(list((tmp_path / "run").glob("step-*")))  # no step begins after the checkpoint
    assert f"asked to stop at step {step}; {tmp_path}/run/checkpoint-{step} is complete." in errors
    assert "Traceback" not in errors
    assert "worker" not in errors.lower()
    assert failure(tmp_path)["exit_code"] == 143


@pytest.mark.slow
def test_in_an_evaluation_it_is_broken_off_and_done_first_when_the_run_goes_on(start: Start, tmp_path: Path) -> None:
    slow = (
        "--training.max_steps=4",
        "--training.eval_strategy=steps",
        "--training.eval_steps=3",
        "--training.metrics_function=slow_metric",
        f"--training.metrics_kwargs.where={tmp_path}/run",
    )
    process = start(*slow, "--training.save_steps=2")
    wait_for(tmp_path / "run/evaluating", process)
    process.send_signal(signal.SIGTERM)
    errors, _ = finish(process)
    assert process.returncode == 143, errors
    assert complete(tmp_path / "run") == [2, 3]
    assert (tmp_path / "run/metrics.jsonl").read_text() == ""
    assert "asked to stop at step 3" in str(failure(tmp_path)["message"])
    (tmp_path / "run/evaluating").unlink()
    process = start(*slow, "--training.save_steps=2")
    wait_for(tmp_path / "run/evaluating", process)
    process.send_signal(signal.SIGTERM)  # once more: nothing was trained in between
    errors, _ = finish(process)
    assert process.returncode == 143, errors
    assert "asked to stop at step 3: nothing was trained since it began, nothing is lost." in errors
    process = start(*slow, "--training.save_steps=2")
    errors, _ = finish(process)
    assert process.returncode == 0, errors
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [3, 4]
    assert not (tmp_path / "run/failure.json").exists()


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused_by_the_id_of_the_first_until_that_is_killed(
    start: Start, tmp_path: Path
) -> None:
    first = start("--training.dataloader_num_workers=2")
    wait_for(tmp_path / "run/step-1", first)
    errors, _ = finish(second := start())
    assert second.returncode == 6
    assert f"training.output_dir: another run, process {first.pid}, is writing into {tmp_path}/run." in errors
    assert not (tmp_path / "run/failure.json").exists()  # it is the first one's folder
    first.kill()
    first.wait()  # its workers may live on for a moment
    errors, _ = finish(third := start("--training.max_steps=1"))
    assert third.returncode == 0, errors
