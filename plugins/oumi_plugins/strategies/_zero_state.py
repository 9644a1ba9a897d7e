"""Whole tensors of what ZeRO divides, and the way back: checkpoints are those of one process.

So a run goes on with another number of processes, another stage, or another strategy, and no file of DeepSpeed's,
which are pickles, is ever read.
"""

# DeepSpeed is an extra, which need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import nn

from oumi_plugins.strategies._optimizer_files import State, state_of

Group = dict[str, Any]


def whole_groups(optimizer: Any) -> list[Group]:
    """Return the groups of an optimizer that has not been divided yet, with their own lists of parameters."""
    return [{**group, "params": list(group["params"])} for group in optimizer.param_groups]


class DividedOptimizer:
    """An optimizer whose parameters and state ZeRO has replaced by this process's parts of them.

    To whoever saves or restores it, it has whole parameters with their names.

    Attributes:
        parts: The optimizer as it was built; DeepSpeed may step by one of its own of the same method.
        param_groups: Its groups with whole parameters.
    """

    def __init__(self, optimizer: Any, stepped: Any, zero: Any, groups: Sequence[Group]) -> None:
        """Take the optimizer, the one that steps, DeepSpeed's wrapper of that, and its groups before it was divided."""
        self.parts, self._stepped = (optimizer,), stepped
        self._zero, self._groups = zero, groups

    @property
    def param_groups(self) -> list[Group]:
        """The groups, with the settings of this moment."""
        now = self._stepped.param_groups
        return [{**group, **_settings(current)} for group, current in zip(self._groups, now, strict=True)]

    @property
    def state(self) -> Mapping[Any, Any]:
        """What this process keeps."""
        return self._stepped.state

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the whole, tensors without their numbers."""
        return self._state(lambda parameter, key: torch.empty(_shape(parameter), device="meta"))

    def whole(self, *, keep: bool) -> State:
        """Return the state of the optimizer as it were in one process; those that do not `keep` it get empty tensors.

        Every process must call this.
        """

        def gather(parameter: nn.Parameter, key: str) -> torch.Tensor:
            whole = safe_get_full_optimizer_state(parameter, key)
            return whole.cpu() if keep and whole is not None else torch.empty(0)

        return state_of(SimpleNamespace(parts=self.parts, state_dict=lambda: self._state(gather)))

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take this process's parts of a whole state, which every process has."""
        parameters = self._parameters()
        for group, before in zip(self._stepped.param_groups, saved["param_groups"], strict=True):
            group.update(_settings(before))
        given = {id(p): saved["state"].get(index, {}) for index, p in enumerate(parameters)}
        optimizer = self._stepped
        optimizer.state.clear()
        for flat, inside in self._flats():
            keys = {key: value for p in inside for key, value in given[id(p)].items()}
            if keys:
                optimizer.state[flat] = {key: self._empty_part(flat, value) for key, value in keys.items()}
            for parameter in inside:
                self._take(parameter, flat, given[id(parameter)])

    def _empty_part(self, flat: torch.Tensor, value: Any) -> Any:
        """Return where a process keeps its part of a state, or the state itself if it is a number."""
        if _is_divided(value):
            return torch.zeros_like(flat, dtype=value.dtype)
        counts_in_host = isinstance(value, torch.Tensor) and self._stepped is not self.parts[0]
        return int(value) if counts_in_host else value

    def _take(self, parameter: nn.Parameter, flat: torch.Tensor, values: Mapping[str, Any]) -> None:
        _link(parameter, flat, self._stepped.state[flat])
        for key, value in values.items():
            if _is_divided(value):
                safe_set_full_optimizer_state(parameter, value.to(flat.device), key)

    def _state(self, tensor: Any) -> dict[str, Any]:
        state: dict[int, dict[str, Any]] = {}
        for flat, inside in self._flats():
            kept = self._stepped.state.get(flat, {})
            for parameter in inside:
                _link(parameter, flat, kept)
                state[id(parameter)] = {
                    key: tensor(parameter, key) if _is_divided(value) else value for key, value in kept.items()
                }
        indices = {id(parameter): index for index, parameter in enumerate(self._parameters())}
        groups = [
            {**group, "params": [indices[id(parameter)] for parameter in group["params"]]}
            for group in self.param_groups
        ]
        return {"state": {indices[which]: values for which, values in state.items() if values}, "param_groups": groups}

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self._groups for parameter in group["params"]]

    def _flats(self) -> Iterator[tuple[torch.Tensor, list[nn.Parameter]]]:
        """Yield each flat tensor that is stepped here, with the parameters of which parts are in it."""
        zero = self._zero
        if hasattr(zero, "fp32_partitioned_groups_flat"):
            yield from zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
        else:
            yield from zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)


def whole_masters(optimizer: DividedOptimizer, *, keep: bool) -> dict[str, torch.Tensor]:
    """Return name -> whole float32 weight that steps change, to those that `keep` it; every process must call this."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in _named(optimizer):
        whole = safe_get_full_fp32_param(parameter)
        if keep and whole is not None:
            found[name] = whole.cpu()
    return found


def set_masters(optimizer: DividedOptimizer, masters: Mapping[str, torch.Tensor]) -> None:
    """Take this process's parts of the float32 weights."""
    for name, parameter in _named(optimizer):
        safe_set_full_fp32_param(parameter, masters[name].to(parameter.device))


def whole_model(model: nn.Module, *, trained: bool, keep: bool) -> dict[str, torch.Tensor] | None:
    """Return a divided model's whole weights, in host memory, to those that `keep` them; every process must call this.

    Weights are gathered one at a time, and only those that train if `trained`.
    """
    found: dict[int, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if trained and isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            continue
        if id(tensor) not in found:  # tied weights are one
            with GatheredParameters([tensor]):
                found[id(tensor)] = tensor.detach().cpu().clone() if keep else tensor.detach()[:0]
        state[name] = found[id(tensor)]
    return state if keep else None


def open_to_state_dicts(model: nn.Module) -> None:
    """Let a divided model's `load_state_dict` take whole weights, and its `state_dict` tell their shapes.

    Each module's weights are gathered while it is written, so every process must call `load_state_dict`. What
    `state_dict` gives has no numbers (device `meta`): it is called by single processes, to which nobody would send any.
    """
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own:
            module.register_state_dict_post_hook(_as_outlines)
            writing = _Writing(own)
            module.register_load_state_dict_pre_hook(writing.begin)
            module.register_load_state_dict_post_hook(writing.end)


def _as_outlines(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, weight in module.named_parameters(recurse=False):
        held = state.get(prefix + name)
        if held is not None and not isinstance(held, nn.Parameter):  # as it is with keep_vars
            state[prefix + name] = torch.empty(_shape(weight), dtype=weight.dtype, device="meta")


class _Writing:
    """Gathers the weights of one module for as long as they are written."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self._weights = list(weights)
        self._context: Any = None

    def begin(self, *_: Any) -> None:
        """Gather them."""
        self._context = GatheredParameters(self._weights, modifier_rank=0)
        self._context.__enter__()

    def end(self, *_: Any) -> None:
        """Divide what the first process has written."""
        self._context.__exit__(None, None, None)


class LossScale:
    """DeepSpeed's loss scaler, saved and restored as torch's is."""

    def __init__(self, scaler: Any) -> None:
        self._scaler = scaler

    def state_dict(self) -> dict[str, float]:
        """Return its numbers."""
        return {key: value for key, value in vars(self._scaler).items() if isinstance(value, int | float)}

    def load_state_dict(self, saved: Mapping[str, float]) -> None:
        """Take numbers that `state_dict` gave; those of another strategy's are not its own."""
        vars(self._scaler).update({key: value for key, value in saved.items() if key in vars(self._scaler)})


def spoil(zero: Any) -> None:
    """Make the gradient of a step one that DeepSpeed does not take, and clears as it should."""
    for norms in (getattr(zero, "norm_for_param_grads", None) or {},):
        for parameter in norms:
            norms[parameter] = torch.tensor(math.inf)
    for parts in zero.averaged_gradients.values():
        for part in parts or ():
            if part is not None:
                part.fill_(math.nan)


def _named(optimizer: DividedOptimizer) -> Iterator[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def _settings(group: Mapping[str, Any]) -> Group:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _link(parameter: Any, flat: torch.Tensor, state: Mapping[str, Any]) -> None:
    """Tell DeepSpeed where the state of a parameter is; by itself it looks once, when only the first group has any."""
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is not None:
        mapping.set_optim_state_fragment(flat, state)


def _is_divided(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0


def _shape(parameter: Any) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)
