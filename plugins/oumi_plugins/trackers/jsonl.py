"""Figures as JSON lines in `metrics.jsonl` of the output folder. Always on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from oumi_kernel import Component, hookimpl
from oumi_kernel.contracts import Plan, Run, StepRecord


class Jsonl(Component):
    """Writes one JSON object for each log entry and each evaluation. Steps rise, also where a run went on."""

    @hookimpl
    def oumi_train_start(self, run: Run, plan: Plan, step: int) -> None:
        """Begin the file anew; a run that goes on keeps what the file says up to its checkpoint."""
        file = run.output_dir / "metrics.jsonl"
        if run.world.is_main:
            lines = file.read_bytes().splitlines(keepends=True) if step and file.exists() else []
            file.write_bytes(b"".join(line for line in lines if _step(line) <= step))

    @hookimpl
    def oumi_step_end(self, run: Run, record: StepRecord) -> None:
        """Write a logging step."""
        if record.loss is not None:
            self._write(run, msgspec.structs.asdict(record))

    @hookimpl
    def oumi_evaluate_end(self, run: Run, step: int, figures: Mapping[str, float]) -> None:
        """Write an evaluation."""
        self._write(run, {"step": step, **figures})

    def _write(self, run: Run, entry: Mapping[str, Any]) -> None:
        if run.world.is_main:
            with (run.output_dir / "metrics.jsonl").open("ab") as file:
                file.write(msgspec.json.encode(entry) + b"\n")


def _step(line: bytes) -> float:
    """Return the step of a line; infinity for one that a crash cut short."""
    try:
        return msgspec.json.decode(line)["step"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return math.inf
