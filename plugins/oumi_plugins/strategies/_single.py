"""Placement, precision, clipping and stepping in one process."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from oumi_kernel import CheckpointError, ConfigError, Problem
from oumi_kernel.config import MixedPrecisionDtype, PeftParams
from oumi_kernel.config.derived import peft_enabled
from oumi_kernel.contracts import Prepared, Run
from oumi_plugins.strategies._cpu import (
    SEQUENCES_A_PACK,
    faster_matmul,
    give_freed_memory_back,
    is_glibc,
    keep_freed_memory,
    restore_matmul,
)
from oumi_plugins.strategies._in_backward import InBackward
from oumi_plugins.strategies._optimizer_files import (
    TENSORS,
    State,
    parameters_of,
    read_optimizer,
    state_of,
    write_rest,
    write_tensors,
)
from oumi_plugins.strategies._part_files import MODEL, OPTIMIZER, load_weights, read_parts
from oumi_plugins.strategies._stepping import step_unless
from oumi_plugins.strategies.precision import mixed_precision
from oumi_plugins.strategies.shards import state_beside
from oumi_plugins.trainers.memory import memory_errors

SCHEDULE = "scheduler.json"


class SingleStrategy:
    """How a step is done by one process (see `oumi_kernel.contracts.Strategy`)."""

    def __init__(self, run: Run) -> None:
        self._training, self._packs = run.config.training, run.config.data.train.pack
        self._is_quantised = run.config.peft.q_lora
        self._trains_adapter = peft_enabled(run.config, run.config.peft != PeftParams())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = self._training.mixed_precision_dtype
        if precision is MixedPrecisionDtype.FP16 and self.device.type == "cpu":
            message = "fp16 needs a GPU; this machine has none."
            path = "training.mixed_precision_dtype"
            raise ConfigError(Problem(code="not-served", path=path, message=message, hint="Use bf16 or none."))
        self._scaler = torch.amp.GradScaler(enabled=precision is MixedPrecisionDtype.FP16)
        self._matmul: str | None = None
        self._in_backward: InBackward | None = None
        self.keeps_freed_memory = False
        self._prepared = Prepared(model=None, optimizer=None, scheduler=None)

    def setup(self) -> None:
        """Seed everything random, and ask for deterministic algorithms where the configuration does."""
        seed = self._training.seed
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        deterministic = self._training.use_deterministic or self._training.full_determinism
        torch.use_deterministic_algorithms(deterministic)
        if self.device.type == "cpu":
            rows = self._training.per_device_train_batch_size
            self._matmul = faster_matmul(rows * SEQUENCES_A_PACK if self._packs else rows)
            self._keep_memory(not (self._training.enable_gradient_checkpointing or self._trains_adapter))

    def prepare(self, model: Any, build: Callable[[Any], tuple[Any, Any]]) -> Prepared:
        """Move the model to the device, then build the optimizer over its parameters there.

        Raises:
            OutOfMemoryError: The device has no room for the weights.
        """
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        with memory_errors(lambda: {"weights": size}):
            model.to(self.device)
        return self._build(model, build)

    def _build(self, model: Any, build: Callable[[Any], tuple[Any, Any]]) -> Prepared:
        optimizer, scheduler = build(model)
        self._prepared = Prepared(model=model, optimizer=optimizer, scheduler=scheduler)
        return self._prepared

    def place(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch on the device."""
        return {
            name: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return autocast to the mixed precision, or nothing."""
        return mixed_precision(self._training, self.device.type)

    def compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of the model returns."""
        return function(*arguments)

    def backward_context(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return nothing: there is nobody to exchange gradients with."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of the loss, and step each weight whose gradient that completes if asked to."""
        if self._in_backward is not None:
            self._in_backward.begin(loss)
        self._scaler.scale(loss).backward()

    def step_in_backward(self) -> None:
        """From now on step each parameter in `backward`, when its gradient is complete; `step` then steps none."""
        self._in_backward = InBackward(self._prepared.optimizer)
        if self.device.type == "cpu":
            self._keep_memory(False)

    @property
    def steps_in_backward(self) -> bool:
        """Whether a step that is not finite may have changed weights before it was known to be."""
        return self._in_backward is not None

    def step(self, max_norm: float | None, loss: torch.Tensor | None = None) -> torch.Tensor:
        """Clip, step and clear; returns the gradient's norm before clipping, not finite where no step was taken.

        In fp16 the loss scale is lowered then.
        """
        norm = self._in_backward.end() if self._in_backward is not None else self._step(max_norm, loss)
        self._prepared.scheduler.step()
        return norm if loss is None else norm.masked_fill(~torch.isfinite(loss), math.nan)

    def _step(self, max_norm: float | None, loss: torch.Tensor | None) -> torch.Tensor:
        model, optimizer = self._prepared.model, self._prepared.optimizer
        self._scaler.unscale_(optimizer)
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        norm = self._norm(parameters)
        if loss is not None:
            norm = norm.masked_fill(~torch.isfinite(loss), math.nan)
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        step_unless(~torch.isfinite(norm), optimizer)
        self._scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _norm(self, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the norm of the whole gradient, on the device."""
        return torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])

    def _keep_memory(self, keep: bool) -> None:
        """Keep freed memory for speed, unless the configuration asks for something that needs less memory."""
        self.keeps_freed_memory = keep and is_glibc()
        keep_freed_memory() if keep else give_freed_memory_back()

    def reduce_sum(self, values: torch.Tensor, what: str = "a sum") -> torch.Tensor:
        """Return the values: they are the sum already."""
        return values

    def full_state(self, model: Any, *, trained: bool) -> Mapping[str, Any] | None:
        """Return the model's weights."""
        return model.state_dict()

    def save(self, directory: Path) -> None:
        """Write optimizer, schedule and loss scale: tensors as safetensors, the rest as JSON."""
        state = state_of(self._prepared.optimizer)
        write_tensors(state, directory)
        self._write_rest(state, directory)

    def load(self, directory: Path) -> None:
        """Read what `save` wrote, here or with any other strategy.

        Raises:
            CheckpointError: A file cannot be read, or its state is that of other parameters or settings.
        """
        self._restore(directory, self._read_tensors)

    def load_weights(self, model: Any, directory: Path) -> bool:
        """Read weights that processes wrote in parts; return False where there are none.

        Raises:
            CheckpointError: A file cannot be read, or does not fit the model.
        """
        if not (directory / MODEL).is_dir():
            return False
        load_weights(model, directory / MODEL)
        return True

    def save_weights(self, model: Any, directory: Path) -> bool:
        """Return that weights are to be written whole."""
        return False

    def whole_weights(self, directory: Path) -> Mapping[str, torch.Tensor]:
        """Return whole weights that processes wrote in parts.

        Raises:
            ConfigError: There are none.
            CheckpointError: A file cannot be read.
        """
        if not (directory / MODEL).is_dir():
            raise ConfigError(f"{directory} holds no weights in parts ({MODEL}): it opens as it is.")
        return read_parts(directory / MODEL, lambda _, size, dtype: torch.empty(size, dtype=dtype))

    def check(self, directory: Path) -> None:
        """Raise what `load` would, without reading a tensor, and go on as if nothing had been read.

        Raises:
            CheckpointError: As `load` does.
        """
        parts = self._prepared.optimizer, self._prepared.scheduler, self._scaler
        before = [part.state_dict() for part in parts]
        self._restore(directory, _without_numbers)
        for part, state in zip(parts, before, strict=True):
            part.load_state_dict(state)

    def _write_rest(self, state: State, directory: Path) -> None:
        write_rest(state, directory, scaler=self._scaler.state_dict())
        (directory / SCHEDULE).write_text(json.dumps(self._prepared.scheduler.state_dict()))

    def _read_tensors(self, directory: Path) -> Mapping[str, torch.Tensor]:
        """Return the tensors of an optimizer's state, each as its parameter is."""
        parameters = parameters_of(self._prepared.optimizer)

        def beside(name: str, tensor: torch.Tensor) -> torch.Tensor:
            owner = parameters.get(name.rpartition(":")[0])
            return tensor if owner is None else state_beside(tensor, owner)

        if not (directory / OPTIMIZER).is_dir():
            return {name: beside(name, tensor) for name, tensor in load_file(directory / TENSORS).items()}
        return read_parts(
            directory / OPTIMIZER, lambda name, size, dtype: beside(name, torch.empty(size, dtype=dtype, device="cpu"))
        )

    def _restore(self, directory: Path, read: Callable[[Path], Mapping[str, torch.Tensor]]) -> None:
        try:
            schedule = json.loads((directory / SCHEDULE).read_bytes())
            record = read_optimizer(self._prepared.optimizer, directory, read(directory))
            self._prepared.scheduler.load_state_dict(schedule)
            self._scaler.load_state_dict(record["scaler"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            message = f"the state of optimizer and schedule in {directory} cannot be restored: {error}"
            raise CheckpointError(message) from error

    def close(self) -> None:
        """Put back the way in which matrices are multiplied; there is no process group."""
        restore_matmul(self._matmul)


def _without_numbers(directory: Path) -> Mapping[str, torch.Tensor]:
    """Return the tensors of an optimizer's state without their elements; such as have no dimension are zero."""
    if (directory / OPTIMIZER).is_dir():
        outlines = read_parts(
            directory / OPTIMIZER, lambda _, size, dtype: torch.empty(size, dtype=dtype, device="meta")
        )
        return {name: torch.zeros([0] * outline.ndim) for name, outline in outlines.items()}
    with safe_open(directory / TENSORS, "pt") as opened:
        return {name: torch.zeros([0] * len(opened.get_slice(name).get_shape())) for name in opened.keys()}  # noqa: SIM118
