"""Figures as JSON lines in `metrics.jsonl` of the output folder. Always on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from oumi_kernel import Component, hookimpl
from oumi_kernel.contracts import Plan, Run, StepRecord


class Jsonl(Component):
    """Writes one JSON object for each log entry and each evaluation. A resumed run goes on in the same file."""

    @hookimpl
    def oumi_train_start(self, run: Run, plan: Plan, step: int) -> None:
        """Begin the file anew, unless the run goes on from a checkpoint."""
        if run.world.is_main and step == 0:
            (run.output_dir / "metrics.jsonl").write_bytes(b"")

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
