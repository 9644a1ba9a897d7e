"""The training loop that all trainers share.

The loss of an optimizer step is one thing: the sum over the supervised tokens of all its micro-batches (and processes),
divided by their number. An objective returns sums; only the loop divides. So the result does not depend on how a step's
examples are cut into micro-batches, nor on padding.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from oumi_kernel import NumericsError, OutOfMemoryError, StopRequested
from oumi_kernel.config import Moments
from oumi_kernel.contracts import Session, StepRecord, Summary
from oumi_plugins.trainers._checkpoint import Checkpoints, Progress
from oumi_plugins.trainers._order import OrderedBatches
from oumi_plugins.trainers._signals import stop_signals

_log = logging.getLogger("oumi_plugins.trainers.loop")
Batch = Mapping[str, torch.Tensor]


class Objective(Protocol):
    """What a training method gives to the loop."""

    def count(self, batch: Batch) -> int:
        """Return the supervised tokens of a batch on the host."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the sum of token losses, a float32 scalar."""
        ...

    def token_losses(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return losses, predictions and labels of the supervised positions, each (tokens,)."""
        ...


class Seen:
    """What a metric sees of a batch (see `oumi_kernel.contracts.EvaluationBatch`)."""

    def __init__(self, losses: torch.Tensor, predictions: torch.Tensor, labels: torch.Tensor) -> None:
        self.losses, self.predictions, self.labels = losses, predictions, labels


class Loop:
    """Trains a session to the end of its plan."""

    def __init__(self, session: Session, objective: Objective, keep: int | None) -> None:
        self.session, self.objective = session, objective
        self.training, self.plan = session.run.config.training, session.plan
        self.model, self.strategy = session.prepared.model, session.strategy
        self.checkpoints = Checkpoints(session, keep)
        self.progress = Progress()
        self.loss_sum = torch.zeros((), dtype=torch.float32)
        self.loss_count = 0
        self.figures: dict[str, float] = {}
        self.evaluated_at = -1
        self.clock, self.clock_tokens = time.perf_counter(), 0

    def train(self) -> Summary:
        """Do the steps of the plan that are left.

        Raises:
            NumericsError: A loss or gradient that was looked at is not finite.
            OutOfMemoryError: The device ran out of memory.
            StopRequested: The process was asked to stop; a complete checkpoint was written.
        """
        self._prepare_model()
        resumed = self.checkpoints.resume()
        if resumed:
            self.progress = resumed
            self.loss_sum, self.loss_count = torch.tensor(resumed.loss_sum), resumed.loss_count
            _log.info("going on from step %d", resumed.step)
        self.session.kernel.train_start(self.session.run, self.plan, self.progress.step)
        self.clock, self.clock_tokens = time.perf_counter(), self.progress.tokens
        try:
            with stop_signals() as stop:
                self._steps(stop)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(_out_of_memory(error)) from error
        if self._evaluates() and self.evaluated_at != self.progress.step:
            self._evaluate()
        return Summary(steps=self.progress.step, figures=self.figures)

    def evaluate(self) -> dict[str, float]:
        """Return `eval_loss`, the sum of token losses over their number, and the figures of the metrics."""
        metrics = self.session.build_metrics()
        total = torch.zeros((), dtype=torch.float64)
        tokens = 0
        self.model.eval()
        with torch.no_grad():
            for batch in self._loader("validation", None):
                with self.strategy.forward_context():
                    losses, predictions, labels = self.objective.token_losses(self.model, self.strategy.place(batch))
                total += losses.sum(dtype=torch.float64).cpu()
                tokens += len(labels)
                for metric in metrics:
                    metric.update(Seen(losses, predictions, labels))
        self.model.train()
        sums = self.strategy.reduce_sum(torch.tensor([float(total), tokens], dtype=torch.float64))
        figures = {"eval_loss": float(sums[0] / sums[1])}
        for metric in metrics:
            figures |= {f"eval_{name}": float(value) for name, value in metric.compute().items()}
        return figures

    def _prepare_model(self) -> None:
        training = self.training
        if training.enable_gradient_checkpointing:
            options = {"use_reentrant": False} | training.gradient_checkpointing_kwargs
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            if options["use_reentrant"]:
                self.model.enable_input_require_grads()
        if training.compile:
            self.model.compile()
        if training.log_model_summary:
            _log.info("%s", self.model)
        self.model.train()

    def _steps(self, stop: Any) -> None:
        while self.progress.step < self.plan.total_steps:
            for window in self._windows():
                self._step(window)
                self._after_step()
                if stop.requested:
                    folder = self._save()
                    raise StopRequested(f"asked to stop at step {self.progress.step}; {folder} is complete.")
                if self.progress.step >= self.plan.total_steps:
                    return

    def _windows(self) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each optimizer step that is left of the epoch."""
        batches = iter(self._loader("train", self.progress))
        while window := list(itertools.islice(batches, self.training.gradient_accumulation_steps)):
            yield window

    def _loader(self, split: str, progress: Progress | None) -> DataLoader[Any]:
        training, examples = self.training, self.session.examples[split]
        options: dict[str, Any] = {"collate_fn": self.session.collators[split]}
        workers = training.dataloader_num_workers
        workers = max(1, min(8, (os.cpu_count() or 1) // 4)) if workers == "auto" else workers
        if workers:
            options |= {"num_workers": workers, "prefetch_factor": training.dataloader_prefetch_factor}
            options["persistent_workers"] = training.dataloader_persistent_workers
        options["pin_memory"] = torch.cuda.is_available()
        # The loader draws a seed from a generator when it is made; one of its own leaves the global state alone.
        options["generator"] = torch.Generator().manual_seed(training.seed)
        if progress is None:
            return DataLoader(examples, batch_size=training.per_device_eval_batch_size, **options)  # pyright: ignore
        order = OrderedBatches(
            len(examples),
            training.per_device_train_batch_size,
            seed=training.data_seed,
            epoch=progress.epoch,
            start=progress.micro_batches,
        )
        return DataLoader(examples, batch_sampler=order, **options)  # pyright: ignore

    def _step(self, window: list[Batch]) -> None:
        count = sum(self.objective.count(batch) for batch in window)
        total = self.strategy.reduce_sum(torch.tensor(count))
        for index, batch in enumerate(window):
            placed = self.strategy.place(batch)
            with self.strategy.backward_context(last=index == len(window) - 1):
                with self.strategy.forward_context():
                    loss = self.objective.loss(self.model, placed)
                self.strategy.backward(loss / total)
            self.loss_sum = self.loss_sum + loss.detach().to(self.loss_sum.device if index else loss.device)
            self.progress.tokens += int(batch["attention_mask"].sum())
        self.loss_count += count
        self.rate = self.session.prepared.scheduler.get_last_lr()[0]
        self.norm = self.strategy.step(self.training.max_grad_norm or None)
        self.progress.step += 1
        self.progress.micro_batches += len(window)

    def _after_step(self) -> None:
        step, training = self.progress.step, self.training
        batches = math.ceil(self.plan.examples / training.per_device_train_batch_size)
        epoch_ends = self.progress.micro_batches >= batches
        epoch = self.progress.epoch + self.progress.micro_batches / batches
        if epoch_ends:
            self.progress.epoch += 1
            self.progress.micro_batches = 0
        self.session.kernel.step_end(self.session.run, self._record(epoch, epoch_ends=epoch_ends))
        if training.empty_device_cache_steps and step % training.empty_device_cache_steps == 0:
            torch.cuda.empty_cache()
        if self._evaluates() and _is_due(training.eval_strategy, step, training.eval_steps, epoch_ends=epoch_ends):
            self._evaluate()
        if (training.save_steps and step % training.save_steps == 0) or (training.save_epoch and epoch_ends):
            self._save()

    def _record(self, epoch: float, *, epoch_ends: bool) -> StepRecord:
        training, step = self.training, self.progress.step
        due = _is_due(training.logging_strategy, step, training.logging_steps, epoch_ends=epoch_ends)
        first = step == 1 and training.logging_first_step
        record = StepRecord(step=step, epoch=epoch, learning_rate=self.rate, tokens=self.progress.tokens)
        if not due and not first:
            return record
        loss, norm = float(self.loss_sum) / self.loss_count, float(self.norm)
        seconds = max(time.perf_counter() - self.clock, 1e-9)
        speed = (self.progress.tokens - self.clock_tokens) / seconds
        self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0
        self.clock, self.clock_tokens = time.perf_counter(), self.progress.tokens
        self.figures |= {"loss": loss, "grad_norm": norm}
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise NumericsError(
                    f"the {name} is {value} at step {step}, learning rate {self.rate:g}. Lower the learning rate, "
                    "clip gradients (training.max_grad_norm), or use mixed_precision_dtype: bf16 instead of fp16."
                )
        return StepRecord(
            step=step,
            epoch=epoch,
            learning_rate=self.rate,
            tokens=self.progress.tokens,
            tokens_per_second=speed,
            loss=loss,
            grad_norm=norm,
        )

    def _evaluates(self) -> bool:
        return "validation" in self.session.examples and self.training.eval_strategy is not Moments.NO

    def _evaluate(self) -> None:
        started, self.evaluated_at = time.perf_counter(), self.progress.step
        figures = self.evaluate()
        self.figures |= figures
        self.session.kernel.evaluate_end(self.session.run, self.progress.step, figures)
        observe = getattr(self.session.prepared.scheduler, "observe", None)
        if observe:
            observe(figures["eval_loss"])
        self.clock += time.perf_counter() - started  # evaluation is no training time

    def _save(self) -> Any:
        started = time.perf_counter()
        self.progress.loss_sum, self.progress.loss_count = float(self.loss_sum), self.loss_count
        folder = self.checkpoints.save(self.progress)
        self.session.kernel.checkpoint_saved(self.session.run, self.progress.step, folder)
        self.clock += time.perf_counter() - started
        return folder


def _is_due(strategy: Moments, step: int, every: int, *, epoch_ends: bool) -> bool:
    return epoch_ends if strategy is Moments.EPOCH else strategy is Moments.STEPS and step % every == 0


def _out_of_memory(error: BaseException) -> str:
    first = str(error).splitlines()[0]
    return (
        f"out of memory: {first} Lower training.per_device_train_batch_size (and raise gradient_accumulation_steps), "
        "lower model.model_max_length, or set training.enable_gradient_checkpointing: true."
    )
