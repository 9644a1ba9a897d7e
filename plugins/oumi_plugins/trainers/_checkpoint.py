"""Checkpoints: written beside, verified, then renamed. Only complete ones are eligible; nothing executes on load."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError

from oumi_kernel import CheckpointError
from oumi_kernel.completeness import STATE, incompleteness
from oumi_kernel.contracts import Session
from oumi_kernel.disk import cannot_write, require_space
from oumi_kernel.launch import restarted_after
from oumi_kernel.rehearsal import ChecksState
from oumi_plugins.trainers._averages import averaged, use_averages, use_trained
from oumi_plugins.trainers._completion import Completion
from oumi_plugins.trainers._manifest import (
    checkpoints_in,
    last_written_first,
    name_of,
    standing_for,
    tidy,
    written_at,
)
from oumi_plugins.trainers._model_files import load_weights, save_weights
from oumi_plugins.trainers._optimizer_state import tensors_in
from oumi_plugins.trainers._random_state import load_random_state, save_random_state
from oumi_plugins.trainers._retention import Best, Retention, better
from oumi_plugins.trainers._settings import Setting, check_settings, settings_of

_log = logging.getLogger("oumi_plugins.trainers.checkpoint")


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """How far training is.

    Attributes:
        step: Optimizer steps done.
        epoch: Epochs done.
        examples: Examples of the current epoch done.
        tokens: Tokens read, without padding.
        loss_sum: Sum of token losses since the last log entry.
        loss_count: Supervised tokens since the last log entry.
        skipped: Steps that were not taken, because loss or gradient was not finite.
        overflowed: Steps that were not taken, because the gradient overflowed in fp16.
        evaluation_due: Whether the evaluation of this step was broken off.
        evaluated_at: The step of the last evaluation; -1 before the first.
        best: The best checkpoint so far, this one included.
        order: What the order of samples follows from; the same again is what lets an epoch go on.
        settings: What the result follows from, by configuration key.
    """

    step: int = 0
    epoch: int = 0
    examples: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    skipped: int = 0
    overflowed: int = 0
    evaluation_due: bool = False
    evaluated_at: int = -1
    best: Best | None = None
    order: dict[str, int | str] = {}
    settings: dict[str, Setting] = {}


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, session: Session, retention: Retention) -> None:
        self._session, self._retention = session, retention
        self._folder = session.run.output_dir
        announce = lambda step, folder: session.kernel.checkpoint_saved(session.run, step, folder)  # noqa: E731
        self._completion = Completion(self._folder, retention.limit, announce, beside=retention.asynchronous)
        follows = hasattr(session.prepared.scheduler, "observe")
        self._settings = settings_of(session.run.config, session.plan, follows_evaluation=follows)
        self.saved: dict[int, Path] = {}

    def save(self, progress: Progress, eval_loss: float | None) -> Path:
        """Write a complete checkpoint and return its folder.

        Args:
            progress: How far training is; its best checkpoint is brought up to date.
            eval_loss: The loss of an evaluation at this very step, if there was one.

        Raises:
            CheckpointError: It cannot be written; older checkpoints are left as they are.
        """
        session, target = self._session, self._folder / f"checkpoint-{progress.step}"
        beside, is_main = self._folder / f".tmp-{target.name}", session.run.world.is_main
        progress.best = better(progress.best, progress.step, eval_loss)
        progress.settings = self._settings
        self._completion.look(wait=True)
        needed = self._completion.size or _bytes_of(session)
        if is_main:
            shutil.rmtree(beside, ignore_errors=True)
            require_space(target, needed)
        try:
            if is_main:
                beside.mkdir(parents=True)
            self._wait()
            self._write(beside, progress)
            self._wait()
        except (OSError, SafetensorError, CheckpointError) as error:
            if is_main:
                tidy(self._folder)
            raise cannot_write(target, needed, error) from error
        if is_main:
            self._completion.begin(progress.step, beside, progress.best.step if progress.best else None, needed)
        self._wait()
        self.saved = {progress.step: target}
        return target

    def look(self, *, wait: bool = False) -> None:
        """Learn of a checkpoint that was completed meanwhile; `wait` for it, in all processes.

        Raises:
            CheckpointError: It could not be completed; older ones are left as they are.
        """
        self._completion.look(wait=wait)
        if wait:
            self._wait()

    def resume(self, order: Mapping[str, int | str]) -> Progress | None:
        """Restore the checkpoint that the configuration names, or the newest one if it says so; else None.

        The optimizer trains from here on (see `_averages`).

        Args:
            order: What the order of samples of this run follows from.

        Raises:
            CheckpointError: The checkpoint is missing, incomplete, damaged, or does not fit.
        """
        session = self._session
        if session.run.world.is_main:
            tidy(self._folder)
        self._wait()
        found = self.find(order)
        if found is None:
            use_trained(session.prepared.optimizer)
            return None
        folder, progress = found
        load_weights(session, session.prepared.model, folder)
        session.strategy.load(folder)
        use_trained(session.prepared.optimizer)
        load_random_state(folder, session.run.world.rank)
        progress.best = self._still_there(progress.best)
        _log.info("%s", _where(progress.step, session.plan.total_steps))
        return progress

    def find(self, order: Mapping[str, int | str]) -> tuple[Path, Progress] | None:
        """Return the checkpoint that `resume` restores, and how far it is; None if there is none.

        Raises:
            CheckpointError: It is missing, incomplete, damaged, or stands in an epoch of another order.
        """
        folder = self._chosen()
        if folder is None:
            return None
        try:
            progress = msgspec.json.decode((folder / STATE).read_bytes(), type=Progress)
        except (OSError, msgspec.DecodeError) as error:
            raise CheckpointError(f"{folder / STATE} cannot be read: {error}") from error
        _check_order(folder, progress, order)
        check_settings(folder, progress.settings, self._settings)
        return folder, progress

    def rehearse(self, order: Mapping[str, int | str], skeleton: Any) -> tuple[list[str], list[str]]:
        """Do what `resume` does without reading a weight; return what there is to say, and what could not be checked.

        Args:
            order: What the order of samples of this run follows from.
            skeleton: The model on the device `meta`.

        Raises:
            CheckpointError: What `resume` would raise.
        """
        found = self.find(order)
        if found is None:
            return [], []
        (folder, progress), session, unchecked = found, self._session, list[str]()
        load_weights(session, skeleton, folder)
        if isinstance(session.strategy, ChecksState):
            session.strategy.check(folder)
        else:
            unchecked.append(f"whether the state of optimizer and schedule in {folder} fits: the strategy offers none.")
        load_random_state(folder, session.run.world.rank)
        return [f"goes on from {name_of(folder)}, step {progress.step} of {session.plan.total_steps}."], unchecked

    def load_best(self, best: Best | None) -> None:
        """Put into the model what the run leaves: the optimizer's averages, or the weights of the best checkpoint.

        Raises:
            CheckpointError: There is none, or it was damaged since it was saved.
        """
        use_averages(self._session.prepared.optimizer)
        if not self._retention.load_best:
            return
        if best is None:
            raise CheckpointError("load_best_model_at_end: no checkpoint has a finite evaluation loss.")
        folder = self._folder / f"checkpoint-{best.step}"
        problem = incompleteness(folder)
        if problem:
            raise CheckpointError(f"load_best_model_at_end: {folder} cannot be read: {problem}.")
        load_weights(self._session, self._session.prepared.model, folder)
        _log.info("the model is that of %s, evaluation loss %.6g", folder.name, best.eval_loss)

    def _write(self, folder: Path, progress: Progress) -> None:
        session = self._session
        world = session.run.world
        with averaged(session.prepared.optimizer):
            save_weights(session, folder)
            session.strategy.save(folder)
        save_random_state(folder, world.rank)
        if world.is_main:
            (folder / STATE).write_bytes(msgspec.json.format(msgspec.json.encode(progress), indent=2))

    def _wait(self) -> None:
        """Wait until all processes are here."""
        self._session.strategy.reduce_sum(torch.zeros(1), "whose turn it is at a checkpoint")

    def _chosen(self) -> Path | None:
        training, began = self._session.run.config.training, restarted_after()
        own = [path for path in last_written_first(self._folder) if began is not None and written_at(path) >= began]
        own = [path for path in own if not incompleteness(path)]
        if own:
            return own[0]
        if training.resume_from_checkpoint:
            folder = Path(self._session.run.locate(training.resume_from_checkpoint))
            if folder.parent.resolve() == self._folder.resolve():
                folder = standing_for(folder)
            problem = incompleteness(folder)
            if problem:
                raise CheckpointError(
                    f"training.resume_from_checkpoint: cannot go on from {folder}: {problem}.{self._others(folder)}"
                )
            return folder
        for folder in last_written_first(self._folder) if training.try_resume_from_last_checkpoint else ():
            problem = incompleteness(folder)
            if not problem:
                return folder
            _log.warning("%s is passed over: %s", folder, problem)
        return None

    def _others(self, folder: Path) -> str:
        """Return which checkpoints there are beside a folder that is none, or else in the run's own folder."""
        for place in (folder.parent, folder, self._folder):
            found = [path.name for _, path in checkpoints_in(place)]
            if found:
                return f" In {place} there are: {', '.join(found)}."
        return ""

    def _still_there(self, best: Best | None) -> Best | None:
        if best is None or not incompleteness(self._folder / f"checkpoint-{best.step}"):
            return best
        _log.warning(
            "the best checkpoint so far, step %d with evaluation loss %.6g, is not in %s; the best is found anew",
            best.step,
            best.eval_loss,
            self._folder,
        )
        return None


def _where(step: int, total: int) -> str:
    if step < total:
        return f"going on from step {step} of {total}"
    beyond = " The model stays that of the checkpoint." if step > total else ""
    return f"nothing is left to train: the run ends at step {total}, and the checkpoint is of step {step}.{beyond}"


def _check_order(folder: Path, progress: Progress, order: Mapping[str, int | str]) -> None:
    """Refuse to go on within an epoch whose order would be another one: samples would be repeated or left out."""
    saved = progress.order
    changed = [f"{key} was {saved.get(key)}, now {value}" for key, value in order.items() if saved.get(key) != value]
    if progress.examples and changed:
        raise CheckpointError(
            f"cannot go on from {folder}, which stands within an epoch: {'; '.join(changed)}. "
            "Set it back, or go on from a checkpoint at the end of an epoch."
        )
    if changed:
        _log.warning("since %s was written: %s. The result will not be that of one run.", folder, "; ".join(changed))


def _bytes_of(session: Session) -> int:
    """Return the bytes that the first checkpoint takes at least: what is trained, and the optimizer's state of it."""
    trained: Iterator[torch.Tensor] = (p for p in session.prepared.model.parameters() if p.requires_grad)
    kept = (tensor for _, tensor in tensors_in(session.prepared.optimizer.state_dict()["state"]))
    return sum(tensor.numel() * tensor.element_size() for tensor in (*trained, *kept))
