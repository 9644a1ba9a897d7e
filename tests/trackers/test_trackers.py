"""What trackers write, and that a run that goes on is one story."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from oumi_kernel.contracts import Plan, Run, StepRecord, Summary, World
from oumi_kernel.loading import load_text
from oumi_plugins.trackers.jsonl import Jsonl
from oumi_plugins.trackers.progress import Progress
from oumi_plugins.trackers.tensorboard import TensorBoard
from tests.conftest import minimal_yaml

PLAN = Plan(total_steps=10, steps_per_epoch=5, examples=40, effective_batch_size=8)


def run_in(folder: Path, training: str = "", **world: int) -> Run:
    loaded = load_text(minimal_yaml(training=f"  output_dir: {folder}\n{training}"), "c")
    return Run(config=loaded.config, folder=loaded.folder, world=World(**world))


def record(step: int, loss: float | None = 2.0) -> StepRecord:
    fast = None if loss is None else 1e3
    return StepRecord(
        step=step,
        epoch=step / 5,
        learning_rate=1e-3,
        tokens=100 * step,
        tokens_per_second=fast,
        loss=loss,
        grad_norm=0.5,
    )


def tell(tracker: Any, run: Run, *steps: int, start: int = 0, end: bool = True) -> None:
    tracker.oumi_train_start(run=run, plan=PLAN, step=start)
    for step in steps:
        tracker.oumi_step_end(run=run, record=record(step))
    if end and hasattr(tracker, "oumi_train_end"):
        tracker.oumi_train_end(run=run, summary=Summary(steps=max(steps), figures={"loss": 2.0, "eval_loss": 1.5}))


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_file_of_metrics_has_a_line_for_each_log_entry_and_evaluation(tmp_path: Path) -> None:
    tracker, run = Jsonl(), run_in(tmp_path)
    tell(tracker, run, 1, 2)
    tracker.oumi_step_end(run=run, record=record(3, loss=None))
    tracker.oumi_evaluate_end(run=run, step=3, figures={"eval_loss": 1.5})
    assert entries(tmp_path)[0] == {
        "step": 1,
        "epoch": 0.2,
        "learning_rate": 0.001,
        "tokens": 100,
        "tokens_per_second": 1000.0,
        "loss": 2.0,
        "grad_norm": 0.5,
        "skipped": 0,
    }
    assert entries(tmp_path)[2] == {"step": 3, "eval_loss": 1.5}


def test_a_run_that_goes_on_keeps_the_lines_up_to_its_checkpoint(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    tell(Jsonl(), run, 1, 2, 3, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut short by a crash
    tell(Jsonl(), run, 3, 4, 5, start=2)
    assert [entry["step"] for entry in entries(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_new_run_begins_a_new_file_and_only_the_first_process_writes(tmp_path: Path) -> None:
    tell(Jsonl(), run_in(tmp_path), 1, 2)
    tell(Jsonl(), run_in(tmp_path), 1)
    tell(Jsonl(), run_in(tmp_path, rank=1, size=2), 1, 2, 3)
    assert [entry["step"] for entry in entries(tmp_path)] == [1]


def scalars(folder: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder)).Reload()
    return {tag: [event.step for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_tensorboard_has_the_figures_of_training_and_evaluation(tmp_path: Path) -> None:
    tracker, run = TensorBoard(), run_in(tmp_path)
    tell(tracker, run, 1, 2, end=False)
    tracker.oumi_evaluate_end(run=run, step=2, figures={"eval_loss": 1.5})
    tracker.oumi_train_end(run=run, summary=Summary(steps=2, figures={}))
    found = scalars(tmp_path / "tensorboard")
    assert found["train/loss"] == found["train/grad_norm"] == found["train/learning_rate"] == [1, 2]
    assert found["eval/loss"] == [2]


def test_tensorboard_shows_each_step_once_when_a_run_goes_on(tmp_path: Path) -> None:
    run = run_in(tmp_path, training=f"  logging_dir: {tmp_path}/elsewhere\n  run_name: mine\n")
    tell(TensorBoard(), run, 1, 2, 3, 4)
    tell(TensorBoard(), run, 3, 4, 5, start=2)
    assert scalars(tmp_path / "elsewhere/mine")["train/loss"] == [1, 2, 3, 4, 5]


def on(terminal: bool) -> tuple[Progress, io.StringIO]:
    tracker, text = Progress(), io.StringIO()
    tracker._console = Console(file=text, force_terminal=terminal, width=120)
    return tracker, text


def test_without_a_terminal_progress_is_lines_with_time_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker, text = on(terminal=False)
    with caplog.at_level(logging.INFO, "oumi_plugins"):
        tell(tracker, run_in(tmp_path), 5)
        tracker.oumi_evaluate_end(run=run_in(tmp_path), step=5, figures={"eval_loss": 1.5})
    assert caplog.messages == [
        "step 5/10  loss 2.0000  lr 1.00e-03  1,000 tok/s  0:00 left",
        "step 5  eval_loss 1.5000",
    ]
    assert "Training is done" in text.getvalue()
    assert "eval_loss" in text.getvalue()


def test_on_a_terminal_progress_is_a_bar_that_is_taken_away(tmp_path: Path) -> None:
    tracker, text = on(terminal=True)
    tell(tracker, run_in(tmp_path), 4, 5, end=False)
    tracker._bar.refresh()
    assert "5/10" in text.getvalue()
    assert "loss 2.0000" in text.getvalue()
    tracker.oumi_train_error(run=run_in(tmp_path), error=ValueError())
    assert tracker._bar is None


def test_other_processes_than_the_first_show_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker, text = on(terminal=True)
    with caplog.at_level(logging.INFO, "oumi_plugins"):
        tell(tracker, run_in(tmp_path, rank=1, size=2), 5)
    assert text.getvalue() == ""
    assert not caplog.messages
