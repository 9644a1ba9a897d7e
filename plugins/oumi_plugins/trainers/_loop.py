"""The training loop that all trainers share.

The loss of an optimizer step is one thing: the sum over the supervised tokens of all its micro-batches (and processes),
divided by their number. An objective returns sums; only the loop divides. So the result does not depend on how a step's
examples are cut into micro-batches, nor on padding.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from oumi_kernel import NumericsError, StopRequested
from oumi_kernel.config import Moments
from oumi_kernel.contracts import Session, StepRecord, Summary
from oumi_kernel.launch import begin_no_more
from oumi_plugins.strategies.shards import own_part
from oumi_plugins.trainers._averages import averaged
from oumi_plugins.trainers._batches import Batch, Batches
from oumi_plugins.trainers._checkpoint import Checkpoints, Progress
from oumi_plugins.trainers._numerics import FREE, Attempt, Guard
from oumi_plugins.trainers._retention import Retention, save_is_due
from oumi_plugins.trainers._seen import Seen, gathered
from oumi_plugins.trainers.memory import held_by, memory_errors

_log = logging.getLogger("oumi_plugins.trainers.loop")


class Objective(Protocol):
    """What a training method gives to the loop."""

    def begin(self, session: Session) -> None:
        """Get to know the model of the session, before anything else is asked."""
        ...

    def compile(self) -> None:
        """Compile what computes most."""
        ...

    def supervise(self, batch: Mapping[str, torch.Tensor]) -> Batch:
        """Return a collated batch on the host as the model reads it, `tokens` among it, and its supervised tokens."""
        ...

    def loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the sum of token losses of such a batch on the device, a float32 scalar."""
        ...

    def token_losses(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return losses, predictions and labels of the supervised positions, each (tokens,)."""
        ...


class Loop:
    """Trains a session to the end of its plan."""

    def __init__(self, session: Session, objective: Objective, retention: Retention, allowed: int = 0) -> None:
        self.session, self.objective = session, objective
        self.training, self.plan = session.run.config.training, session.plan
        self.model, self.strategy = session.prepared.model, session.strategy
        objective.begin(session)
        self.batches, self.checkpoints = Batches(session, objective.supervise), Checkpoints(session, retention)
        self.guard = Guard(session, objective, allowed)
        self.progress = Progress(order=self.batches.order_follows_from)
        self.loss_sum = self.norm = torch.zeros((), dtype=torch.float32)
        self.rate = 0.0
        self.figures: dict[str, float] = {}
        self.asked, self.started_at = False, 0
        self.clock, self.clock_tokens = time.perf_counter(), 0

    def train(self) -> Summary:
        """Do the steps of the plan that are left.

        Raises:
            NumericsError: More losses or gradients than allowed are not finite, or a weight is not.
            OutOfMemoryError: The device or the host ran out of memory.
            StopRequested: The process was asked to stop; a complete checkpoint was written.
        """
        with memory_errors(lambda: held_by(self.model, self.session.prepared.optimizer)):
            self._begin()
            if self.progress.evaluation_due:
                self._evaluate()
            self._steps()
            if self.progress.step > self.started_at:
                self._check_finite()
            if self._evaluates() and self.progress.evaluated_at != self.progress.step:
                self._evaluate()
            self._end_if_asked()
            self.checkpoints.look(wait=True)
            self.checkpoints.load_best(self.progress.best)
        return Summary(steps=self.progress.step, figures=self.figures)

    def _begin(self) -> None:
        self._prepare_model()
        resumed = self.checkpoints.resume(self.progress.order)
        if resumed:
            resumed.order = self.progress.order
            self.progress, self.loss_sum = resumed, torch.tensor(resumed.loss_sum)
            self.started_at = resumed.step
        self.session.kernel.train_start(self.session.run, self.plan, self.progress.step)
        self.clock, self.clock_tokens = time.perf_counter(), self.progress.tokens

    def rehearse(self, skeleton: Any) -> tuple[list[str], list[str]]:
        """Do what `train` does before its first step but read no weights; return what to say, and what is unchecked."""
        self._prepare_model()
        found = self.checkpoints.rehearse(self.progress.order, skeleton)
        next(self.batches.windows(0, 0))
        if self._evaluates():
            next(iter(self.batches.of("validation")))
            self.session.build_metrics()
        return found

    def evaluate(self) -> dict[str, float] | None:
        """Return `eval_loss`, a sum of token losses over their number, and the metrics' figures; None if stopped."""
        metrics = self.session.build_metrics()
        sums = torch.zeros(2, dtype=torch.float64)
        self.model.eval()
        with torch.no_grad(), averaged(self.session.prepared.optimizer):
            for batch, _ in self.batches.of("validation"):
                placed = self.strategy.place(batch)
                with self.strategy.forward_context():
                    seen = Seen(*self.strategy.compute(self.objective.token_losses, placed))
                sums += torch.tensor([float(seen.losses.double().sum()), len(seen.labels)], dtype=torch.float64)
                if metrics:
                    seen = gathered(seen, self.session)
                for metric in metrics:
                    metric.update(seen)
                if self._is_asked():
                    break
        self.model.train()
        if self.asked:
            return None
        total, tokens = self.strategy.reduce_sum(sums, "the losses of an evaluation").tolist()
        figures = {"eval_loss": total / tokens}
        for metric in metrics:
            figures |= {f"eval_{name}": float(value) for name, value in metric.compute().items()}
        return figures

    def _prepare_model(self) -> None:
        training = self.training
        if training.compile:
            self.objective.compile()
        if training.log_model_summary:
            _log.info("%s", self.model)
        if training.empty_device_cache_steps and not torch.cuda.is_available():
            _log.warning("training.empty_device_cache_steps: no effect: there is no GPU.")
        self.model.train()

    def _steps(self) -> None:
        self._end_if_asked()
        while self.progress.step < self.plan.total_steps:
            for window in self.batches.windows(self.progress.epoch, self.progress.examples):
                self._step(window)
                self._after_step()
                self._end_if_asked()
                if self.progress.step >= self.plan.total_steps:
                    return

    def _end_if_asked(self) -> None:
        step = self.progress.step
        if not self._is_asked():
            return
        if step == self.started_at:
            raise StopRequested(f"asked to stop at step {step}: nothing was trained since it began, nothing is lost.")
        folder = self.checkpoints.saved.get(step) or self._save()
        self.checkpoints.look(wait=True)
        raise StopRequested(f"asked to stop at step {step}; {folder} is complete.")

    def _is_asked(self) -> bool:
        """Return whether any process was asked to stop, the same answer in all of them."""
        mine = torch.tensor([int(self.session.stop.requested)])
        self.asked = any(self.strategy.reduce_sum(mine, "whether to stop").tolist())
        if self.asked:
            begin_no_more()
        return self.asked

    def _step(self, window: list[Batch]) -> None:
        mine = [sum(supervised for _, supervised in window), sum(batch["tokens"] for batch, _ in window)]
        total, tokens = self.strategy.reduce_sum(torch.tensor(mine), "the counts of a step").tolist()
        before, self.loss_sum = self.loss_sum, torch.zeros_like(self.loss_sum)
        for index, (batch, _) in enumerate(window):
            placed = self.strategy.place(batch)
            with self.strategy.backward_context(last=index == len(window) - 1):
                with self.strategy.forward_context():
                    loss = self.strategy.compute(self.objective.loss, placed)
                self.strategy.backward(loss / total)
            self.loss_sum = self.loss_sum.to(loss.device) + loss.detach()
        self.rate = self.session.prepared.scheduler.get_last_lr()[0]
        self.loss_sum = self.strategy.reduce_sum(self.loss_sum, "the loss of a step")
        progress = self.progress
        progress.tokens += tokens
        progress.loss_count += total
        progress.step += 1
        examples = min(self.plan.effective_batch_size, self.plan.examples - progress.examples)
        place = {"step": progress.step, "epoch": progress.epoch, "example": progress.examples}
        attempt = Attempt(**place, examples=examples, tokens=total, rate=self.rate)
        self.norm, taken = self.guard.step(self.loss_sum / total, attempt, progress)
        self.loss_sum = before.to(taken.device) + torch.where(taken, self.loss_sum, 0)
        progress.examples += examples
        if taken.device.type in FREE:
            self._look()

    def _after_step(self) -> None:
        progress, training = self.progress, self.training
        epoch_ends = progress.examples >= self.plan.examples
        epoch = progress.epoch + progress.examples / self.plan.examples
        if epoch_ends:
            progress.epoch += 1
            progress.examples = 0
        self.session.kernel.step_end(self.session.run, self._record(epoch, epoch_ends=epoch_ends))
        self.guard.raise_failure()
        self.checkpoints.look()
        step = progress.step
        if training.empty_device_cache_steps and step % training.empty_device_cache_steps == 0:
            torch.cuda.empty_cache()
        ends = step >= self.plan.total_steps
        evaluation_is_due = ends or _is_due(training.eval_strategy, step, training.eval_steps, epoch_ends=epoch_ends)
        if self._evaluates() and evaluation_is_due:  # before the checkpoint, which then knows its figure
            self._evaluate()
        if save_is_due(training, step, ends=ends, epoch_ends=epoch_ends) and not self._is_asked():
            self._save()

    def _record(self, epoch: float, *, epoch_ends: bool) -> StepRecord:
        training, progress = self.training, self.progress
        step, tokens = progress.step, progress.tokens
        due = _is_due(training.logging_strategy, step, training.logging_steps, epoch_ends=epoch_ends)
        skipped = progress.skipped + progress.overflowed
        if not due and not (step == 1 and training.logging_first_step) and not self.guard.failure:
            return StepRecord(step=step, epoch=epoch, learning_rate=self.rate, tokens=tokens, skipped=skipped)
        self._look()
        speed = (tokens - self.clock_tokens) / max(time.perf_counter() - self.clock, 1e-9)
        self.loss_sum, progress.loss_count = torch.zeros_like(self.loss_sum), 0
        self.clock, self.clock_tokens = time.perf_counter(), tokens
        return StepRecord(
            step=step,
            epoch=epoch,
            learning_rate=self.rate,
            tokens=tokens,
            tokens_per_second=speed,
            loss=self.figures["loss"],
            grad_norm=self.figures["grad_norm"],
            skipped=progress.skipped + progress.overflowed,
        )

    def _check_finite(self) -> None:
        """Look at the steps and at every trained weight, before any of them is kept.

        Raises:
            NumericsError: Too many steps were lost, or a weight is not finite: the last step broke what the losses
                before it could not show.
        """
        self._look()
        self.guard.raise_failure()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(own_part(parameter)).all()):
                where = f"the weight {name} is not finite after step {self.progress.step}, learning rate {self.rate:g}"
                raise NumericsError(f"{where}. Lower the learning rate.")

    def _look(self) -> None:
        """Learn of the steps since the last look and of their loss, which waits for the device."""
        if self.guard.look(self.progress) or self.progress.loss_count:
            count = self.progress.loss_count
            loss = float(self.loss_sum) / count if count else math.nan
            self.figures |= {"loss": loss, "grad_norm": float(self.norm)}

    def _evaluates(self) -> bool:
        return "validation" in self.session.examples and self.training.eval_strategy is not Moments.NO

    def _evaluate(self) -> None:
        started = time.perf_counter()
        figures = self.evaluate()
        self.progress.evaluation_due = figures is None
        if figures is None:
            return
        self.progress.evaluated_at = self.progress.step
        self.figures |= figures
        self.session.kernel.evaluate_end(self.session.run, self.progress.step, figures)
        observe = getattr(self.session.prepared.scheduler, "observe", None)
        if observe:
            observe(figures["eval_loss"])
        self.clock += time.perf_counter() - started  # evaluation is no training time

    def _save(self) -> Path:
        self._check_finite()
        started = time.perf_counter()
        self.progress.loss_sum = float(self.loss_sum)
        evaluated = self.progress.evaluated_at == self.progress.step
        folder = self.checkpoints.save(self.progress, self.figures["eval_loss"] if evaluated else None)
        self.clock += time.perf_counter() - started
        return folder


def _is_due(strategy: Moments, step: int, every: int, *, epoch_ends: bool) -> bool:
    return epoch_ends if strategy is Moments.EPOCH else strategy is Moments.STEPS and step % every == 0
