"""A progress bar on a terminal, lines elsewhere, and a table at the end. Always on."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from oumi_kernel import Component, hookimpl
from oumi_kernel.contracts import Plan, Run, StepRecord, Summary

_log = logging.getLogger("oumi_plugins.trackers.progress")


class Progress(Component):
    """Shows step, loss, learning rate, tokens per second and time left."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr)
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._plan: Plan | None = None
        self._started, self._tokens, self._first_step = time.monotonic(), 0, 0

    @hookimpl
    def oumi_train_start(self, run: Run, plan: Plan, step: int) -> None:
        """Show the bar."""
        self._plan, self._started, self._first_step = plan, time.monotonic(), step
        if run.world.is_main and self._console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            bar = Bar(*columns, TimeRemainingColumn(), console=self._console)
            self._task = bar.add_task("", total=plan.total_steps, completed=step)
            bar.start()
            self._bar = bar

    @hookimpl
    def oumi_step_end(self, run: Run, record: StepRecord) -> None:
        """Move the bar; write a line where there is none."""
        self._tokens = record.tokens
        text = _describe(record) if record.loss is not None else ""
        if self._bar:
            self._bar.update(self._task, completed=record.step)
            if text:
                self._bar.update(self._task, description=text)
        elif text and self._plan and run.world.is_main:
            total, done = self._plan.total_steps, record.step - self._first_step
            left = (time.monotonic() - self._started) / max(done, 1) * (total - record.step)
            _log.info("step %d/%d  %s  %s left", record.step, total, text, _duration(left))

    @hookimpl
    def oumi_evaluate_end(self, run: Run, step: int, figures: Mapping[str, float]) -> None:
        """Write an evaluation."""
        if run.world.is_main:
            text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
            self._say(f"step {step}  {text}")

    @hookimpl
    def oumi_checkpoint_saved(self, run: Run, step: int, directory: Path) -> None:
        """Say where a checkpoint is."""
        self._say(f"step {step}  saved {directory}")

    @hookimpl
    def oumi_train_end(self, run: Run, summary: Summary) -> None:
        """Show the table."""
        self._stop()
        if run.world.is_main:
            table = Table(title="Training is done", show_header=False)
            for name, value in (("steps", f"{summary.steps:,}"), ("tokens", f"{self._tokens:,}")):
                table.add_row(name, value)
            for name, value in summary.figures.items():
                table.add_row(name, f"{value:.4f}")
            table.add_row("time", _duration(time.monotonic() - self._started))
            table.add_row("output", str(run.output_dir))
            self._console.print(table)

    @hookimpl
    def oumi_train_error(self, run: Run, error: BaseException) -> None:
        """Take the bar away."""
        self._stop()

    def _say(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(text, highlight=False)
        else:
            _log.info("%s", text)

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def _describe(record: StepRecord) -> str:
    rate, speed = record.learning_rate, record.tokens_per_second or 0
    skipped = f"  {record.skipped:,} skipped" if record.skipped else ""
    return f"loss {record.loss:.4f}  lr {rate:.2e}  {speed:,.0f} tok/s{skipped}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
