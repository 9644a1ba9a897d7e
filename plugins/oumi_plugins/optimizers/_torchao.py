"""Optimizers of torchao, with learning rates that are numbers and a state that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torchao.optim import AdamW4bit, AdamW8bit, AdamWFp8

KEPT = ("codes", "scale")
"""The tensors of a quantised one that change; a table of what codes stand for, if it has one, does not."""
SIGNED = {"exp_avg": True, "exp_avg_sq": False}
"""The moments, and whether they have negative values."""


class _PlainRates(Optimizer):
    """Takes learning rates as numbers, as schedules, logs and checkpoints do; the library wants tensors in a step."""

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, **settings: Any) -> None:
        rates = [group.get("lr", lr) for group in groups]
        super().__init__(groups, lr=lr, **settings)  # pyright: ignore[reportCallIssue] - the library's class is next
        self._set_rates(rates)
        self._make_tables()
        self.register_state_dict_post_hook(_flatten)
        self.register_load_state_dict_pre_hook(_unflatten)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step."""
        rates = [group["lr"] for group in self.param_groups]
        self._set_rates([torch.tensor(rate, dtype=torch.float32) for rate in rates])
        try:
            return super().step(closure)  # pyright: ignore[reportArgumentType]
        finally:
            self._set_rates(rates)

    def _make_tables(self) -> None:
        """Let the library make and keep its tables of codes: that needs numbers, and a dry run's step has none."""
        for signed in SIGNED.values():
            self._subclass_zeros(torch.zeros(self.block_size), signed, self.block_size)  # pyright: ignore

    def _set_rates(self, rates: Sequence[Any]) -> None:
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


class TorchAOAdamW8bit(_PlainRates, AdamW8bit):
    """AdamW with a state of 8 bits."""


class TorchAOAdamW4bit(_PlainRates, AdamW4bit):
    """AdamW with a state of 4 bits."""


class TorchAOAdamWFp8(_PlainRates, AdamWFp8):
    """AdamW with a state in float8."""


def _flatten(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Put mappings of plain tensors in the place of quantised ones."""
    state = {index: {key: _plain(value) for key, value in values.items()} for index, values in saved["state"].items()}
    return {**saved, "state": state}


def _plain(value: Any) -> Any:
    quantised = hasattr(value, "__tensor_flatten__")
    return {name: getattr(value, name) for name in KEPT} if quantised else value


def _unflatten(optimizer: Any, saved: dict[str, Any]) -> dict[str, Any]:
    """Make quantised tensors as the optimizer makes them, with the contents of the mappings."""
    state: dict[int, dict[str, Any]] = {}
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        if index in saved["state"]:
            values = saved["state"][index]
            state[index] = {key: _quantised(optimizer, parameter, key, value) for key, value in values.items()}
    return {**saved, "state": state}


def _quantised(optimizer: Any, parameter: torch.Tensor, key: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    made = optimizer._new_buffer(parameter, SIGNED[key])
    for name in KEPT:
        if value[name].numel():  # none where a state is only looked at: see `SingleStrategy.check`
            getattr(made, name).copy_(value[name])
    return made
