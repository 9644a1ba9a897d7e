"""One step by several processes that divide weights, gradients and optimizer state between them.

Each unit of the model (see `_units`), and then the whole around `Computation`, is divided by torch's `fully_shard`:
what a process does not have of a unit is gathered when it computes and freed after it. Outside of `compute` every
parameter is a `DTensor` of which a process has its part.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config import MixedPrecisionDtype
from oumi_kernel.config.fsdp import AutoWrapPolicy, BackwardPrefetch, FSDPParams, ShardingStrategy, StateDictType
from oumi_kernel.contracts import Prepared, Run, World
from oumi_kernel.rehearsal import Division
from oumi_plugins.strategies._division import fully_sharded, sizes_of
from oumi_plugins.strategies._optimizer_files import State, state_of, write_tensors
from oumi_plugins.strategies._part_files import MODEL, OPTIMIZER, weights_of, write_parts
from oumi_plugins.strategies._several import Computation, SeveralStrategy
from oumi_plugins.strategies._units import units_of
from oumi_plugins.strategies.shards import gathered, own_part
from oumi_plugins.trainers.memory import memory_errors

_log = logging.getLogger("oumi_plugins.strategies.fsdp")
WITHIN_A_MACHINE = (ShardingStrategy.HYBRID_SHARD, ShardingStrategy.HYBRID_SHARD_ZERO2)
KEEPS_GATHERED = (ShardingStrategy.SHARD_GRAD_OP, ShardingStrategy.HYBRID_SHARD_ZERO2, ShardingStrategy.NO_SHARD)
"""Strategies by which what was gathered in the forward pass stays until the backward pass is done."""


class FsdpStrategy(SeveralStrategy):
    """How a step is done by several processes (see `oumi_kernel.contracts.Strategy`)."""

    def __init__(self, params: FSDPParams, run: Run) -> None:
        super().__init__(run)
        self._params = params
        _check(params, run)
        _say_what_has_no_effect(params)
        self._copies, self._shards = _division(params.sharding_strategy, run.world)
        self._writes_parts = params.state_dict_type is StateDictType.SHARDED_STATE_DICT
        self._root: Any = None

    def prepare(self, model: Any, build: Callable[[Any], tuple[Any, Any]]) -> Prepared:
        """Meet the other processes, divide the model, and build the optimizer over the parts.

        Raises:
            ConfigError: The model cannot be divided as the section says.
            OutOfMemoryError: The device has no room for this process's part.
        """
        units = units_of(model, self._params)
        _log.info("%d units, %d parts, %d copies of each", len(units) + 1, self._shards, self._copies)
        if not self._is_rehearsal:
            self._meet()
            self._divide(model, units)
        prepared = self._build(model, build)
        if not self._is_rehearsal:
            self._differ_in_dropout()
        return prepared

    def division(self, model: Any) -> Division:
        """Return what one process will hold of a model, and send."""
        formats = {"bf16": "bfloat16", "fp16": "float16"}
        precision = formats.get(self._params.mixed_precision or "", "")
        units = sizes_of(model, units_of(model, self._params), precision, "float32" if precision else "")
        found = fully_sharded(
            units,
            self._world,
            self._training.gradient_accumulation_steps,
            copies=self._copies,
            reshards=self._params.sharding_strategy not in KEEPS_GATHERED,
        )
        resting = {"weights", "gradients", "optimizer state"} if self._params.cpu_offload else set[str]()
        return msgspec.structs.replace(found, number_format=precision, host=frozenset(resting))

    def compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of the model returns; its weights are gathered meanwhile."""
        assert self._root is not None  # noqa: S101 - a dry run computes nothing
        with self._group.exchange("the weights"):
            if torch.is_grad_enabled():
                return self._root(function, *arguments)
            try:
                return self._root(function, *arguments)
            finally:
                self._root.reset_iter_state()  # there is no backward pass, after which everything is freed

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of the loss to the sum over processes, of which each keeps its part."""
        with self._group.exchange("the gradients"):
            super().backward(loss)

    def backward_context(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return nothing, but let copies add up their gradients for the last micro-batch only.

        Within a copy gradients are exchanged for each: whole ones of all weights would take the memory that is saved.
        """
        if self._copies > 1:
            self._root.set_requires_all_reduce(last)
        return nullcontext()

    def full_state(self, model: Any, *, trained: bool) -> Mapping[str, Any] | None:
        """Return weights on the first process, in the host's memory: all, or those that train and what is whole."""
        found: dict[int, Any] = {}
        state: dict[str, Any] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if trained and isinstance(tensor, DTensor) and not tensor.requires_grad:
                continue
            if id(tensor) not in found:  # tied weights are one
                found[id(tensor)] = gathered(tensor, keep=self._world.is_main)
            state[name] = found[id(tensor)]
        return state if self._world.is_main else None

    def save_weights(self, model: Any, directory: Path) -> bool:
        """Write each process's part of the weights, if checkpoints are to be written so."""
        if self._writes_parts:
            write_parts(weights_of(model), directory / MODEL)
        return self._writes_parts

    def save(self, directory: Path) -> None:
        """Write the state of optimizer and schedule: each process its part, or whole as one process does."""
        state = state_of(self._prepared.optimizer)
        if self._writes_parts:
            write_parts(state.tensors, directory / OPTIMIZER)
        else:
            whole = {name: gathered(tensor, keep=self._world.is_main) for name, tensor in state.tensors.items()}
            if self._world.is_main:
                write_tensors(State(whole, state.rest), directory)
        if self._world.is_main:
            self._write_rest(state, directory)

    def close(self) -> None:
        """Leave the other processes."""
        super().close()
        if self._world.size == 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    def _norm(self, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the norm of the whole gradient; each of the copies has all of it."""
        parts = [own_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
        squared = torch.nn.utils.get_total_norm(parts).to(self.device).double().square() / self._copies
        return self.reduce_sum(squared, "the norm of the gradient").sqrt().float()

    def _meet(self) -> None:
        if self._world.size > 1:
            self._group.meet()
            return
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)

    def _divide(self, model: nn.Module, units: Sequence[nn.Module]) -> None:
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        with memory_errors(lambda: {"weights": size // self._shards}), self._group.exchange("the weights"):
            if self._params.sync_module_states and self._world.size > 1:
                for tensor in (*model.parameters(), *model.buffers()):
                    distributed.broadcast(tensor.detach(), 0)
            for parameter in model.parameters():
                parameter.data = parameter.data.contiguous()
            self._root = Computation(model)
            options = self._options()
            keeps = self._params.sharding_strategy in KEEPS_GATHERED
            parts: list[Any] = [fully_shard(unit, reshard_after_forward=not keeps, **options) for unit in units]
            self._root = fully_shard(self._root, **options)
        for part in (*parts, self._root):
            part.set_gradient_divide_factor(1.0)  # the loss is divided already
            part.set_force_sum_reduction_for_comms(True)
        self._root.set_reduce_scatter_unused_params(True)  # such as experts that no token of a process was sent to
        self._prefetch(parts)

    def _options(self) -> dict[str, Any]:
        formats = {"bf16": torch.bfloat16, "fp16": torch.float16}
        precision = MixedPrecisionPolicy()
        if self._params.mixed_precision is not None:
            precision = MixedPrecisionPolicy(formats[self._params.mixed_precision], reduce_dtype=torch.float32)
        offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
        return {
            "mesh": self._mesh(),
            "mp_policy": precision,
            "offload_policy": offload if self._params.cpu_offload else OffloadPolicy(),
        }

    def _mesh(self) -> DeviceMesh:
        if self._copies == 1:
            return init_device_mesh(self.device.type, (self._shards,))
        names = ("copies", "shards")
        return init_device_mesh(self.device.type, (self._copies, self._shards), mesh_dim_names=names)

    def _prefetch(self, parts: Sequence[FSDPModule]) -> None:
        """Gather the next unit while one computes; `parts` are in the order of the backward pass."""
        if self._params.forward_prefetch:
            for later, earlier in itertools.pairwise(parts):
                earlier.set_modules_to_forward_prefetch([later])
        if self._params.backward_prefetch is not BackwardPrefetch.BACKWARD_PRE:
            for part in parts:
                part.set_modules_to_backward_prefetch([part])  # itself, which is there: nothing else is


def _division(strategy: ShardingStrategy, world: World) -> tuple[int, int]:
    """Return (copies of the model, parts of each copy).

    Raises:
        ConfigError: The machines do not have as many processes each.
    """
    size = world.size
    if strategy is ShardingStrategy.NO_SHARD:
        return size, 1
    if strategy not in WITHIN_A_MACHINE:
        return 1, size
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size // world.nodes))
    if size % here:
        message = f"{strategy.value} needs as many processes on each machine: of {size}, {here} are on this one."
        hint = "Set fsdp.sharding_strategy: FULL_SHARD."
        raise ConfigError(Problem(code="not-served", path="fsdp.sharding_strategy", message=message, hint=hint))
    return size // here, here


def _check(params: FSDPParams, run: Run) -> None:
    """Refuse what FSDP2 has no way to do.

    Raises:
        ConfigError: All of it at once.
    """
    problems = []
    if params.state_dict_type is StateDictType.LOCAL_STATE_DICT:
        message = "FSDP2 has no flat parts that only the same number of processes could read."
        problems.append(("state_dict_type", message, "Set SHARDED_STATE_DICT: each process writes its part."))
    precision = run.config.training.mixed_precision_dtype
    if params.mixed_precision == "fp16" and precision is not MixedPrecisionDtype.FP16:
        message = "gradients in fp16 vanish unless the loss is scaled."
        problems.append(("mixed_precision", message, "Set training.mixed_precision_dtype: fp16 too, or use bf16."))
    if params.mixed_precision == "bf16" and precision is MixedPrecisionDtype.FP16:
        message = "bf16, while training.mixed_precision_dtype is fp16."
        problems.append(("mixed_precision", message, "Leave one of them out."))
    if problems:
        raise ConfigError([Problem(code="not-served", path=f"fsdp.{k}", message=m, hint=h) for k, m, h in problems])


def _say_what_has_no_effect(params: FSDPParams) -> None:
    policy, default = params.auto_wrap_policy, FSDPParams()
    if policy is not AutoWrapPolicy.SIZE_BASED_WRAP and params.min_num_params != default.min_num_params:
        _log.warning("fsdp.min_num_params: no effect: it is for auto_wrap_policy: SIZE_BASED_WRAP.")
    if policy is not AutoWrapPolicy.TRANSFORMER_BASED_WRAP and params.transformer_layer_cls:
        _log.warning("fsdp.transformer_layer_cls: no effect: it is for auto_wrap_policy: TRANSFORMER_BASED_WRAP.")
    if params.backward_prefetch is BackwardPrefetch.BACKWARD_POST:
        _log.warning("fsdp.backward_prefetch: FSDP2 knows no BACKWARD_POST; nothing is gathered early, as NO_PREFETCH.")
