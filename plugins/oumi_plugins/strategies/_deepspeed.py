"""One step by several processes through DeepSpeed's engine.

DeepSpeed averages gradients over processes and would divide them by the micro-batches of a step; ours are sums that
are divided already. So the loss is multiplied by the number of processes, and the loop says which micro-batch is the
last: there may be fewer at the end of an epoch.
"""

# DeepSpeed is an extra, which need not be installed where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import load_file, save_file
from torch import distributed

from oumi_kernel import CheckpointError, ConfigError, Problem
from oumi_kernel.config import DeepSpeedParams, TrainingParams
from oumi_kernel.config.deepspeed import DeepSpeedPrecision
from oumi_kernel.contracts import Prepared, Run
from oumi_kernel.rehearsal import Division
from oumi_plugins.strategies._elementwise import is_elementwise
from oumi_plugins.strategies._optimizer_files import write_tensors
from oumi_plugins.strategies._part_files import MODEL, weights_of
from oumi_plugins.strategies._several import Computation, SeveralStrategy
from oumi_plugins.strategies._zero_division import division_of
from oumi_plugins.strategies._zero_settings import check_zero, number_format, settings_of
from oumi_plugins.strategies._zero_state import (
    DividedOptimizer,
    LossScale,
    open_to_state_dicts,
    set_masters,
    spoil,
    whole_groups,
    whole_masters,
    whole_model,
)
from oumi_plugins.trainers.memory import memory_errors

_log = logging.getLogger("oumi_plugins.strategies.deepspeed")
MASTERS = "master.safetensors"
"""The float32 weights, where the model computes with a copy in 16 bits."""


class DeepSpeedStrategy(SeveralStrategy):
    """How a step is done by several processes (see `oumi_kernel.contracts.Strategy`)."""

    def __init__(self, params: DeepSpeedParams, run: Run) -> None:
        super().__init__(run)
        _be_quiet(self._training.dep_log_level, asked=params.wall_clock_breakdown)
        self._settings = settings_of(params, run)
        zero = self._settings["zero_optimization"]
        check_zero(zero)
        self._stage = int(zero["stage"])
        self._offload = Path(zero["offload_optimizer"]["nvme_path"]) if _swaps(zero) else None
        if self._stage and number_format(self._settings) is not None:
            self._dtype = None  # weights are in 16 bits themselves
        self._scaler: Any = torch.amp.GradScaler(enabled=False)
        self._engine: Any = None

    def prepare(self, model: Any, build: Callable[[Any], tuple[Any, Any]]) -> Prepared:
        """Build the optimizer over whole parameters, meet the other processes, and let DeepSpeed divide it all.

        Raises:
            ConfigError: The optimizer or the model cannot be divided.
            OutOfMemoryError: The device has no room for this process's part.
        """
        if self._stage < 3 and not self._is_rehearsal:
            with memory_errors():
                model.to(self.device)
        prepared = self._build(model, build)
        self._check(prepared)
        if self._is_rehearsal:
            return prepared
        self._meet()
        stepped = self._stepped_on_host(prepared.optimizer)
        with memory_errors(), self._group.exchange("the weights"):
            self._start(model, stepped)
        self._differ_in_dropout()
        return self._prepared

    def division(self, model: Any) -> Division:
        """Return what one process will hold of a model, and send."""
        return division_of(model, self._settings, self._world)

    def compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of the model returns; its weights are gathered meanwhile."""
        with self._group.exchange("the weights"):
            return self._engine(function, *arguments)

    def backward_context(self, *, last: bool) -> AbstractContextManager[Any]:
        """Tell DeepSpeed whether the step ends with this micro-batch."""
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of the loss to the sum over processes, which DeepSpeed divides by their number."""
        with self._group.exchange("the gradients"):
            self._engine.backward(loss * self._world.size, scale_wrt_gas=False)

    def full_state(self, model: Any, *, trained: bool) -> Mapping[str, Any] | None:
        """Return the model's weights, or those that train, on the first process."""
        if self._stage == 3:
            return whole_model(model, trained=trained, keep=self._world.is_main)
        return super().full_state(model, trained=trained) if self._world.is_main else None

    def save(self, directory: Path) -> None:
        """Write the state of optimizer and schedule as one process does, so that any number goes on with it."""
        if not self._stage:
            if self._world.is_main:
                super().save(directory)
            return
        optimizer, keep = self._prepared.optimizer, self._world.is_main
        state = optimizer.whole(keep=keep)
        masters = whole_masters(optimizer, keep=keep) if self._has_masters() else {}
        if keep:
            write_tensors(state, directory)
            self._write_rest(state, directory)
        if masters:
            save_file(masters, directory / MASTERS)

    def load_weights(self, model: Any, directory: Path) -> bool:
        """Read weights that processes wrote in parts; return False where there are none.

        Raises:
            CheckpointError: A file cannot be read, or does not fit the model.
        """
        if self._stage < 3 or self._is_rehearsal:
            return super().load_weights(model, directory)
        if not (directory / MODEL).is_dir():
            return False
        whole, held = self.whole_weights(directory), weights_of(model)
        if {name: tensor.shape for name, tensor in whole.items()} != {n: tensor.shape for n, tensor in held.items()}:
            raise CheckpointError(f"{directory / MODEL} holds the weights of another model.")
        model.load_state_dict(whole, strict=False)  # of weights that are tied one is there
        return True

    def close(self) -> None:
        """Leave the other processes."""
        if self._engine is not None:
            self._engine.destroy()
        super().close()
        if self._world.size == 1 and distributed.is_initialized():
            distributed.destroy_process_group()
        if self._offload is not None and self._world.is_main and not self._is_rehearsal:
            shutil.rmtree(self._offload, ignore_errors=True)

    def _step(self, max_norm: float | None, loss: torch.Tensor | None) -> torch.Tensor:
        if not self._stage:
            return super()._step(max_norm, loss)
        zero = self._engine.optimizer
        if loss is not None and not bool(torch.isfinite(loss)):
            spoil(zero)
        with self._group.exchange("the steps"):
            self._engine.step()
        if zero.overflow:
            return torch.tensor(math.nan, device=self.device)
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)

    def _restore(self, directory: Path, read: Callable[[Path], Mapping[str, torch.Tensor]]) -> None:
        super()._restore(directory, read)
        if not self._stage or self._is_rehearsal:
            return
        zero = self._engine.optimizer
        zero.refresh_fp32_params()  # the model's weights were read into what computes
        if self._has_masters() and (directory / MASTERS).exists():
            set_masters(self._prepared.optimizer, load_file(directory / MASTERS))

    def _check(self, prepared: Prepared) -> None:
        """Refuse what ZeRO would train in another way than one process does.

        Raises:
            ConfigError: It would.
        """
        optimizer, name = prepared.optimizer, self._training.optimizer
        problems = []
        trained = {p.dtype for group in optimizer.param_groups for p in group["params"]}
        if self._stage and torch.bfloat16 in trained and number_format(self._settings) is None:
            self._settings["bf16"] = {"enabled": True}
        if not self._stage and (number_format(self._settings) or trained - {torch.float32}):
            message = "with ZERO_0 nothing keeps a float32 copy of weights in 16 bits."
            problems.append(("deepspeed.zero_stage", message, "Set ZERO_1, or train float32 weights."))
        if self._stage and (isinstance(optimizer, torch.optim.Adagrad) or not is_elementwise(optimizer, self.device)):
            message = (
                f"'{name}' looks at whole weights or blocks of them, and ZeRO gives an optimizer parts of weights."
            )
            problems.append(("training.optimizer", message, "Use adamw_torch, or zero_stage: ZERO_0."))
        is_quantised = self._is_quantised or not all(p.is_floating_point() for p in prepared.model.parameters())
        problems += _not_with_parts(self._training, is_quantised) if self._stage == 3 else ()
        if self._wants_own_adam() and not isinstance(optimizer, torch.optim.Adam):
            message = f"DeepSpeed has no optimizer of its own for '{name}' on the host."
            hint = "Use adamw_torch, or set deepspeed.zero_force_ds_cpu_optimizer: false."
            problems.append(("deepspeed.offload_optimizer", message, hint))
        if problems:
            raise ConfigError([Problem(code="not-served", path=p, message=m, hint=h) for p, m, h in problems])

    def _wants_own_adam(self) -> bool:
        offload = self._settings["zero_optimization"].get("offload_optimizer") or {}
        return (
            bool(offload)
            and offload.get("device") != "none"
            and self._settings.get("zero_force_ds_cpu_optimizer", True)
        )

    def _stepped_on_host(self, optimizer: Any) -> Any:
        """Return DeepSpeed's Adam for the host with the groups of ours, whose learning rates the schedule sets."""
        if not self._wants_own_adam():
            return optimizer
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(optimizer.param_groups, adamw_mode=isinstance(optimizer, torch.optim.AdamW))

    def _meet(self) -> None:
        if self._world.size > 1:
            self._group.meet()
        else:
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
        os.environ.setdefault("LOCAL_RANK", str(self._world.local_rank))  # DeepSpeed reads it

    def _start(self, model: Any, optimizer: Any) -> None:
        # gloo serves as well as DeepSpeed's exchange through shared memory, which it would compile first
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_init_required=False if deepspeed.comm.is_initialized() else None, verbose=False)
        if distributed.get_world_size() != self._world.size or deepspeed.comm.get_world_size() != self._world.size:
            raise AssertionError("DeepSpeed sees another number of processes than there are")
        groups = whole_groups(optimizer)
        if self._stage == 3:
            deepspeed.zero.Init(module=model, config_dict_or_path=self._settings)
            for buffer in model.buffers():
                buffer.data = buffer.data.to(self.device)
        self._engine, *_ = deepspeed.initialize(model=Computation(model), optimizer=optimizer, config=self._settings)
        if self._stage:
            named = self._prepared.optimizer  # what a checkpoint says it is the state of
            self._prepared.optimizer = DividedOptimizer(named, optimizer, self._engine.optimizer, groups)
        if self._stage == 3:
            open_to_state_dicts(model)
        if number_format(self._settings) is DeepSpeedPrecision.FP16:
            self._scaler = LossScale(self._engine.optimizer.loss_scaler)

    def _has_masters(self) -> bool:
        return number_format(self._settings) is not None


def _not_with_parts(training: TrainingParams, is_quantised: bool) -> Iterator[tuple[str, str, str]]:
    """Yield key, reason and way out of what cannot be while weights are divided."""
    if is_quantised:
        hint = "Set ZERO_2: of an adapter there is little to divide."
        yield "deepspeed.zero_stage", "ZERO_3 cannot divide quantised weights.", hint
    if training.compile:
        message = "ZERO_3 fetches weights while the model computes, and that cannot be compiled."
        yield "training.compile", message, "Set it to false, or zero_stage: ZERO_2."
    selective = training.trainer_kwargs.get("gradient_checkpointing_mode") == "selective"
    if training.enable_gradient_checkpointing and selective:
        message = "ZERO_3 fetches weights while layers are computed again, where it is chosen what to compute."
        yield "training.trainer_kwargs.gradient_checkpointing_mode", message, "Set it to full, or zero_stage: ZERO_2."


def _swaps(zero: Mapping[str, Any]) -> bool:
    return (zero.get("offload_optimizer") or {}).get("device") == "nvme"


def _be_quiet(level: str, *, asked: bool) -> None:
    """Let DeepSpeed say no more than errors, unless somebody asked for what libraries say, or for its times."""
    logger = logging.getLogger("DeepSpeed")
    shown = logging.INFO if asked else logging.getLevelNamesMapping()[level.upper()]
    shown = logging.ERROR if shown == logging.WARNING else shown  # its warnings are of what was checked here
    logger.setLevel(shown)
    for handler in logger.handlers:
        handler.setLevel(min(handler.level, shown))  # its own shows warnings and more; others may be somebody's
    warnings.filterwarnings("ignore", message="`torch.distributed.", category=FutureWarning)  # of functions it calls
