"""Steps that are not finite: not taken, counted, and traced to their samples.

A step whose loss or gradient is not finite leaves no mark on weights, optimizer and logged loss. Whether it was taken
stays on the device until somebody looks: after every step on a CPU, where looking is free; else on logging steps,
before a checkpoint and at the end. Once more steps were lost than the run allows, the device takes no further one, so
the weights are those of the last good step whenever that is found out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
import torch

from oumi_kernel import NumericsError
from oumi_kernel.config import MixedPrecisionDtype
from oumi_kernel.contracts import Session
from oumi_plugins.trainers._checkpoint import Progress
from oumi_plugins.trainers._order import epoch_order

_log = logging.getLogger("oumi_plugins.trainers.numerics")
OVERFLOWS = 32
"""Overflows in a row that fp16 may have: they lower any loss scale that it reaches to where none is left."""
FREE = frozenset({"cpu"})
"""Kinds of devices whose scalars the host reads without waiting."""
SHOWN = 8
"""Samples that a message names; `failure.json` names all."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A step that may have been taken.

    Attributes:
        step: Its number, from 1.
        epoch: The epoch that it is in.
        example: How many examples of that epoch were done before it.
        examples: How many it has.
        tokens: Its supervised tokens.
        rate: Its learning rate.
    """

    step: int
    epoch: int
    example: int
    examples: int
    tokens: int
    rate: float


class Loss(Protocol):
    """What the search for a sample needs of a training method (see `_loop.Objective`)."""

    def supervise(self, batch: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], int]:
        """Return a collated batch as the model reads it, and its supervised tokens."""
        ...

    def loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the sum of token losses."""
        ...


class Guard:
    """Takes the steps of a run, except those that are not finite."""

    def __init__(self, session: Session, objective: Loss, allowed: int) -> None:
        self._session, self._objective, self._allowed = session, objective, allowed
        self._training = session.run.config.training
        self._fp16 = self._training.mixed_precision_dtype is MixedPrecisionDtype.FP16
        self._attempts: list[tuple[Attempt, torch.Tensor, torch.Tensor]] = []
        self._lost: torch.Tensor | None = None
        self._overflows = 0
        self.failure: NumericsError | None = None

    def step(self, loss: torch.Tensor, attempt: Attempt, progress: Progress) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the step unless its loss or its gradient is not finite, or too many before it were not.

        Args:
            loss: Its loss, a float32 scalar on the device.
            attempt: Which step it is.
            progress: How many were lost before.

        Returns:
            The norm of the gradient before clipping, and whether the step was taken, scalars on the device.
        """
        lost = torch.tensor(progress.skipped, device=loss.device) if self._lost is None else self._lost
        over = lost > self._allowed
        norm = self._session.strategy.step(self._training.max_grad_norm or None, loss.masked_fill(over, math.nan))
        taken = torch.isfinite(norm)
        self._lost = lost + ~(taken | torch.isfinite(loss) if self._fp16 else taken)
        self._attempts.append((attempt, loss, norm))
        return norm, taken

    def look(self, progress: Progress) -> bool:
        """Count the steps since the last look that were not taken, and return whether there were any steps at all.

        Waits for the device. What a step was lost to is logged; `failure` is set where that is one too many.
        """
        attempts, self._attempts = self._attempts, []
        if not attempts:
            return False
        pairs = torch.stack([torch.stack((loss.float(), norm.float())) for _, loss, norm in attempts]).tolist()
        for (attempt, _, _), (loss, norm) in zip(attempts, pairs, strict=True):
            if math.isfinite(norm):
                self._overflows = 0
                continue
            progress.loss_count -= attempt.tokens
            if not self.failure:
                self._count(attempt, loss, norm, progress)
        return True

    def raise_failure(self) -> None:
        """End the run if too many steps were lost.

        Raises:
            NumericsError: They were; says to which samples.
        """
        if self.failure:
            raise self.failure

    def _count(self, attempt: Attempt, loss: float, norm: float, progress: Progress) -> None:
        if self._fp16 and math.isfinite(loss) and self._overflows < OVERFLOWS:
            self._overflows += 1
            progress.overflowed += 1
            _log.info("step %d was not taken: its gradient overflowed in fp16; a lower loss scale", attempt.step)
            return
        progress.skipped += 1
        name, value = ("gradient norm", norm) if math.isfinite(loss) else ("loss", loss)
        subject = f"the {name} is {value} at step {attempt.step}, learning rate {attempt.rate:g}; {self._outcome()}."
        samples, reason, way_out = self._trace(attempt)
        more = f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else ""
        message = f"{subject} Samples {reason}: {'; '.join(samples[:SHOWN])}{more}."
        if progress.skipped <= self._allowed:
            _log.warning("%s Skipped: %d, of at most %d.", message, progress.skipped, self._allowed)
            return
        if self._allowed:
            message += f" It is one more than training.trainer_kwargs.max_skipped_steps ({self._allowed}) allows."
        details = {"step": attempt.step, name.replace(" ", "_"): str(value), "samples": samples, "reason": reason}
        self.failure = NumericsError(f"{message} {way_out}", details=details)

    def _outcome(self) -> str:
        if getattr(self._session.strategy, "steps_in_backward", False):
            return "weights whose gradients came before were stepped already; go on from the last checkpoint"
        return "it was not taken"

    def _trace(self, attempt: Attempt) -> tuple[list[str], str, str]:
        """Return the samples that a step was lost to, what they have in common, and the way out."""
        training = self._training
        examples = self._session.examples["train"]
        order = epoch_order(len(examples), training.data_seed, attempt.epoch)
        indices = order[attempt.example : attempt.example + attempt.examples]
        alone = self._not_finite_alone(indices)
        samples = [place for index in alone or indices for place in _places(examples, index)]
        if alone and len(alone) < len(indices):
            way_out = "Correct or remove them, or leave such steps out (training.trainer_kwargs.on_nonfinite: skip)."
            return samples, "whose own loss is not finite", way_out
        reason = "whose own loss is not finite, all of the step" if alone else "of the step; the loss of each is finite"
        way_out = (
            "Lower the learning rate, clip gradients (training.max_grad_norm), or use mixed_precision_dtype: bf16 "
            "instead of fp16."
        )
        return samples, reason, way_out

    def _not_finite_alone(self, indices: list[int]) -> list[int]:
        """Return those of the examples whose loss is not finite with the weights as they are, without dropout."""
        model, strategy = self._session.prepared.model, self._session.strategy
        model.eval()
        found: list[int] = []
        with torch.no_grad(), strategy.forward_context():
            for index in indices:
                batch: Any = self._session.collators["train"]([self._session.examples["train"][index]])
                placed = strategy.place(self._objective.supervise(batch)[0])
                if not math.isfinite(float(strategy.compute(self._objective.loss, placed))):
                    found.append(index)
        model.train()
        return found


def _places(examples: Any, index: int) -> list[str]:
    """Return the rows that an example was made of, or its own number where nobody kept them."""
    sources = getattr(examples, "sources", None)
    if sources is None:
        return [f"data.train, example {index}"]
    return [f"data.train, row {row}" for row in sources(index)]
