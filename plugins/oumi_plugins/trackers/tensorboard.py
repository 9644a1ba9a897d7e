"""Figures for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oumi_kernel import Component, hookimpl
from oumi_kernel.contracts import Plan, Run, StepRecord, Summary

FIGURES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch", "skipped")


class TensorBoard(Component):
    """Writes figures to `training.logging_dir`, or `tensorboard` in the output folder, below the run's name."""

    requires = {"tensorboard": "oumi-kernel"}

    def __init__(self) -> None:
        self._writer: Any = None

    @hookimpl
    def oumi_train_start(self, run: Run, plan: Plan, step: int) -> None:
        """Open the writer."""
        if run.world.is_main:
            from torch.utils.tensorboard import SummaryWriter

            training = run.config.training
            folder = Path(training.logging_dir) if training.logging_dir else run.output_dir / "tensorboard"
            self._writer = SummaryWriter(folder / (training.run_name or ""), purge_step=step + 1)

    @hookimpl
    def oumi_step_end(self, run: Run, record: StepRecord) -> None:
        """Write a logging step."""
        if self._writer and record.loss is not None:
            for name in FIGURES:
                value = getattr(record, name)
                if value is not None:
                    self._writer.add_scalar(f"train/{name}", value, record.step)

    @hookimpl
    def oumi_evaluate_end(self, run: Run, step: int, figures: Mapping[str, float]) -> None:
        """Write an evaluation."""
        if self._writer:
            for name, value in figures.items():
                self._writer.add_scalar(f"eval/{name.removeprefix('eval_')}", value, step)

    @hookimpl
    def oumi_train_end(self, run: Run, summary: Summary) -> None:
        """Close the writer."""
        self._close()

    @hookimpl
    def oumi_train_error(self, run: Run, error: BaseException) -> None:
        """Close the writer."""
        self._close()

    def _close(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None
