"""Figures for Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from oumi_kernel import Component, Params, dump, hookimpl
from oumi_kernel.contracts import Plan, Run, StepRecord, Summary

FIGURES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch", "skipped")


class WandbParams(Params):
    """Parameters of the tracker `wandb`: `training.tracker_kwargs.wandb`."""

    project: str = "oumi"
    """The project that the run belongs to."""

    entity: str | None = None
    """The user or team that owns the project. Null: the account's default."""

    tags: list[str] = []
    """Tags of the run."""


class WeightsAndBiases(Component):
    """Sends figures to Weights & Biases; `WANDB_MODE=offline` keeps them in the output folder."""

    params_type = WandbParams
    requires = {"wandb": "oumi-kernel[wandb]"}

    def __init__(self) -> None:
        self._run: Any = None

    @hookimpl
    def oumi_train_start(self, run: Run, plan: Plan, step: int) -> None:
        """Open the run."""
        if not run.world.is_main:
            return
        wandb: Any = importlib.import_module("wandb")  # an extra: pyright need not find it
        training = run.config.training
        given = training.tracker_kwargs.get("wandb", {})
        params = WandbParams(**given)
        self._run = wandb.init(
            project=params.project,
            entity=params.entity,
            tags=params.tags,
            name=training.run_name,
            dir=run.output_dir,
            config=dump(run.config),
        )

    @hookimpl
    def oumi_step_end(self, run: Run, record: StepRecord) -> None:
        """Send a logging step."""
        if self._run and record.loss is not None:
            figures = {f"train/{name}": getattr(record, name) for name in FIGURES}
            self._run.log({name: value for name, value in figures.items() if value is not None}, step=record.step)

    @hookimpl
    def oumi_evaluate_end(self, run: Run, step: int, figures: Mapping[str, float]) -> None:
        """Send an evaluation."""
        if self._run:
            self._run.log({f"eval/{name.removeprefix('eval_')}": value for name, value in figures.items()}, step=step)

    @hookimpl
    def oumi_train_end(self, run: Run, summary: Summary) -> None:
        """Close the run."""
        self._close(0)

    @hookimpl
    def oumi_train_error(self, run: Run, error: BaseException) -> None:
        """Close the run as failed."""
        self._close(1)

    def _close(self, exit_code: int) -> None:
        if self._run:
            self._run.finish(exit_code=exit_code)
            self._run = None
