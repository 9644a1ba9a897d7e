"""A run up to its first step, without weights and without a trace in the output folder: see `run.py` for the real one.

It goes through the same functions in the same order, so that its verdict is that of the run; the data that it
prepares is the data that the run takes from the cache.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from oumi_kernel.config.derived import warmup_steps
from oumi_kernel.contracts import Run, Session, World
from oumi_kernel.disk import check_unreserved
from oumi_kernel.errors import CheckpointError
from oumi_kernel.loading import LoadedConfig
from oumi_kernel.logs import logging_to
from oumi_kernel.placed_errors import errors_placed
from oumi_kernel.plugins import Kernel, Resolution
from oumi_kernel.rehearsal import Estimate, Lengths, PreviewedExample, Rehearses
from oumi_kernel.repeat import data_difference
from oumi_kernel.run import Stage, assemble, header, log_difference, log_warnings, prepare
from oumi_kernel.seeds import with_seeds

_log = logging.getLogger(__name__)


class Report(Protocol):
    """Where a dry run shows what it finds, in this order."""

    def examples(self, split: str, previews: Sequence[PreviewedExample]) -> None:
        """Show the first examples of a split."""
        ...

    def data(self, split: str, stage: Stage, lengths: Lengths | None) -> None:
        """Show what became of the rows of a split."""
        ...

    def steps(self, session: Session, rates: Mapping[int, float]) -> None:
        """Show how long the run is, and the learning rate at some steps."""
        ...

    def estimate(self, estimate: Estimate) -> None:
        """Show what the run needs."""
        ...

    def missing(self, what: str) -> None:
        """Say what could not be shown or checked, and why."""
        ...


def dry_run(loaded: LoadedConfig, resolution: Resolution, world: World, count: int, report: Report) -> None:
    """Do everything that a run does before its first step, and report it.

    Args:
        loaded: The configuration.
        resolution: Its components.
        world: Which process this is.
        count: Examples of each split to show.
        report: Where to.

    Raises:
        OumiError: What the run would raise.
    """
    resolution.raise_for_problems(strict=True)
    loaded = with_seeds(loaded, world)
    run = Run(config=loaded.config, folder=loaded.folder, world=world, rehearsal=True)
    _check_output(run.output_dir)
    with logging_to(run, to_file=False):
        log_warnings(loaded, resolution)
        kernel = Kernel(resolution)
        with errors_placed(kernel, loaded):
            _rehearse(kernel, run, loaded, count, report)


def _rehearse(kernel: Kernel, run: Run, loaded: LoadedConfig, count: int, report: Report) -> None:
    strategy = kernel.build_strategy(run)
    strategy.setup()
    try:
        stage = prepare(kernel, strategy, run)
        log_difference(data_difference(loaded.record, stage.data) if loaded.record else "")
        rehearses = stage.trainer if isinstance(stage.trainer, Rehearses) else None
        if rehearses is None:
            report.missing(f"the trainer '{run.config.training.trainer_type}' offers no previews and no estimate.")
        _show_data(stage, rehearses, count, report)
        skeleton = kernel.build_skeleton(stage.tokenizer, stage.data.examples, run)
        if skeleton is None:
            report.missing("the model's loader builds none without weights: model, optimizer and steps are unchecked.")
        elif rehearses is not None:
            session = assemble(stage, rehearses.miniature(skeleton))
            _log.info("%s", header(session, skeleton))
            estimate = rehearses.rehearse(session, skeleton)
            report.steps(session, _rates(session))
            report.estimate(estimate)
            for what in estimate.unchecked:
                report.missing(what)
    finally:
        strategy.close()


def _show_data(stage: Stage, trainer: Rehearses | None, count: int, report: Report) -> None:
    for split, examples in stage.data.examples.items():
        if trainer is not None:
            report.examples(split, trainer.preview(stage.rows[split], examples, count))
        report.data(split, stage, trainer.lengths(examples) if trainer else None)


def _rates(session: Session) -> dict[int, float]:
    """Return step -> learning rate, from the schedule itself: first step, end of warm-up, middle, last."""
    total, scheduler = session.plan.total_steps, session.prepared.scheduler
    warm = warmup_steps(session.run.config.training, total)
    wanted = {1, min(warm + 1, total), (total + 1) // 2, total}
    found: dict[int, float] = {}
    for step in range(1, total + 1):
        if step in wanted:
            found[step] = scheduler.get_last_lr()[0]
        scheduler.step()
    return found


def _check_output(folder: Path) -> None:
    """Say what the run would say if it could not write its output; make nothing."""
    logs = folder.absolute() / "logs"
    nearest: Any = next(path for path in (logs, *logs.parents) if path.exists())
    if not nearest.is_dir():
        reason = f"{nearest} is a file"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"{nearest} cannot be written"
    else:
        check_unreserved(folder)
        return
    raise CheckpointError(f"training.output_dir: cannot write into {folder}: {reason}. Choose another folder.")
