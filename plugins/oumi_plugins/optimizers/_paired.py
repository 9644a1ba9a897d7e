"""Several optimizers as one: each steps its own parameters, and a schedule, a strategy or a checkpoint sees one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


def paired(parts: Sequence[Optimizer]) -> Optimizer:
    """Return optimizers of different parameters as one."""
    return parts[0] if len(parts) == 1 else Paired(parts)


class Paired(Optimizer):
    """Optimizers that step one after another.

    Its `param_groups` are theirs, so that a schedule sets their learning rates. Their `state` stays with each, whose
    own `state_dict` and `load_state_dict` know how to keep it; `state_dict` here puts these together as that of one
    optimizer with all the groups.

    Attributes:
        parts: The optimizers.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let each optimizer do its step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return state and groups of all, parameters numbered over all groups."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        for part in self.parts:
            first, own = len(_numbers(groups)), part.state_dict()
            state |= {first + index: values for index, values in own["state"].items()}
            groups += [
                {**group, "params": [first + index for index in group["params"]]} for group in own["param_groups"]
            ]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Give each optimizer what is its own of a `state_dict`."""
        groups = list(state_dict["param_groups"])
        if len(groups) != len(self.param_groups):
            raise ValueError(f"{len(groups)} groups of parameters were saved, {len(self.param_groups)} are there now")
        for part in self.parts:
            own, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
            state = {index: state_dict["state"][index] for index in _numbers(own) if index in state_dict["state"]}
            part.load_state_dict({"state": state, "param_groups": own})
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _numbers(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    return [index for group in groups for index in group["params"]]
