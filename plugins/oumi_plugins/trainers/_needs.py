"""What one process holds at its peak, whatever the settings of its run, and with some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from oumi_kernel.config import TrainingParams
from oumi_kernel.contracts import Session, World
from oumi_kernel.rehearsal import Amount, Divides, Division
from oumi_plugins.trainers._examples import token_counts
from oumi_plugins.trainers._forward import Forward
from oumi_plugins.trainers._optimizer_state import state_of
from oumi_plugins.trainers._order import batches_of
from oumi_plugins.trainers._packed import constants_bytes
from oumi_plugins.trainers._shares import FLOAT32, held_bytes, share
from oumi_plugins.trainers._simulation import Usage, simulate
from oumi_plugins.trainers._written import Written, bytes_of, written
from oumi_plugins.trainers.sft import SftParams

KEPT, KEPT_GRADIENTS = 0.35, 0.5
"""Shares of what the passes of a step hold, and of the gradients that go after it, which glibc holds beside them when
it keeps freed memory. They are fitted to runs with eight optimizers, whose peaks they meet within 17 %."""


class Needs:
    """What a run needs whatever its settings, and what it needs with some of them.

    Attributes:
        division: What the strategy divides between processes.
        trained: Parameters that train.
        state: What the optimizer keeps, of all processes together.
        resting: What is there all the time: weights, gradients between steps, the optimizer's state, and its copies of
            weights.
        files: What is written.
    """

    def __init__(self, session: Session, skeleton: nn.Module, params: SftParams, asked: Forward) -> None:
        strategy = session.strategy
        self._session, self._skeleton, self._params, self._asked = session, skeleton, params, asked
        self.division = strategy.division(skeleton) if isinstance(strategy, Divides) else Division()
        self.trained = [parameter for parameter in skeleton.parameters() if parameter.requires_grad]
        self.state = state_of(session, skeleton, torch.float32 if self.division.float32_copies else None)
        whole = held_bytes(skeleton.parameters(), self.division) + constants_bytes(skeleton)
        self._buffers = bytes_of(skeleton.buffers())
        self.files = written(session, skeleton, whole + self._buffers)
        self.resting = tuple(self._resting(whole))
        self._keeps_freed: bool = getattr(strategy, "keeps_freed_memory", False)

    @property
    def host(self) -> tuple[Amount, ...]:
        """Return what rests in the host's memory."""
        return tuple(amount for amount in self.resting if amount.what in self.division.host)

    @property
    def device(self) -> tuple[Amount, ...]:
        """Return what rests on the device, and what the strategy needs there."""
        on_host = self.division.host
        return (*(amount for amount in self.resting if amount.what not in on_host), *self.division.parts)

    def usage(self, settings: TrainingParams) -> Usage | str:
        """Return what the largest micro-batch needs, or why that is not known."""
        session = self._session
        batch = session.collators["train"](largest(session.examples["train"], settings, session.run.world))
        return simulate(self._skeleton, batch, settings, self._params, self._asked, self.division)

    def kept(self, usage: Usage | str, settings: TrainingParams) -> int:
        """Return the bytes that are held beside what a step needs."""
        if not self._keeps_freed or settings.enable_gradient_checkpointing:
            return 0
        gradients = sum(amount.bytes or 0 for amount in self.device if amount.what == "gradients")
        return round(KEPT * _passes(usage) + KEPT_GRADIENTS * gradients)

    def peak(self, usage: Usage | str, settings: TrainingParams) -> int:
        """Return the most at one time on the device: in a step, or while a checkpoint is written.

        Where there is no other device, what rests in the host's memory is part of it.
        """
        saved = self.state.saved_bytes
        saving = _saving(settings, self.files, saved) + share(saved, self.division.optimizer_state)
        there = [amount for amount in self.device if amount.what == "weights"]
        there += [] if torch.cuda.is_available() else self.host
        weights = sum(amount.bytes or 0 for amount in there)
        return weights + max(self._stepping(usage) + self.kept(usage, settings), saving)

    def peak_with(self, settings: TrainingParams) -> int | None:
        """Return the peak with other settings; None where it is not known."""
        usage = self.usage(settings)
        return self.peak(usage, settings) if isinstance(usage, Usage) else None

    def _stepping(self, usage: Usage | str) -> int:
        """Return what there is in a step beside the weights; gradients are part of what its passes use."""
        apart = ("weights", "gradients") if isinstance(usage, Usage) else ("weights",)
        return _passes(usage) + sum(amount.bytes or 0 for amount in self.device if amount.what not in apart)

    def _resting(self, weights: int) -> Iterator[Amount]:
        """Yield what is there between steps, in the order in which it is shown."""
        division, trained = self.division, self.trained
        yield _shared("weights", weights, division.weights, "every parameter once", self._buffers)
        if self._params.optimizer_in_backward:
            largest_one = max(held_bytes([one], division) for one in trained)
            yield Amount(what="gradients", bytes=largest_one, how="one parameter at a time")
        else:
            yield _shared("gradients", held_bytes(trained, division), division.gradients, "parameters that train")
        processes = division.optimizer_state
        if division.float32_copies:
            copies = FLOAT32 * sum(parameter.numel() for parameter in trained)
            yield _shared("float32 copies", copies, processes, "of the weights that train, which are stepped")
        yield _shared("optimizer state", self.state.known, processes, "as a step without numbers leaves it")


def largest(examples: Sequence[Any], training: TrainingParams, world: World) -> list[Any]:
    """Return the examples of the micro-batch of the first epoch that has most tokens, of whichever process it is."""
    lengths = token_counts(examples)
    dealt = (one for shares in batches_of(lengths, training, world).shares() for one in shares if one)
    most = max(dealt, key=lambda one: int(lengths[one].sum()))
    return [examples[index] for index in most]


def _passes(usage: Usage | str) -> int:
    return max(usage.forward, usage.backward) if isinstance(usage, Usage) else 0


def _shared(what: str, size: int | None, processes: int, how: str, everywhere: int = 0) -> Amount:
    """Return one process's share of a number of bytes, and what each has in any case."""
    part = None if size is None else share(size, processes) + everywhere
    return Amount(what=what, bytes=part, how=how if processes == 1 else f"{how}, 1/{processes} of each")


def _saving(training: TrainingParams, files: Written, state: int) -> int:
    """Return the bytes of the copy from which a checkpoint or the model is written, and of a base read again here."""
    checkpoints = bool(training.save_steps or training.save_epoch)
    base = 0 if torch.cuda.is_available() else files.base
    return max(
        max(files.checkpoint, state) if checkpoints else 0,
        max(files.checkpoint, base) if training.save_final_model else 0,
    )
