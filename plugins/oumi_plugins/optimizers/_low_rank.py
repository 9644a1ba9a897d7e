"""What GaLore and APOLLO have in common: which matrices are projected, and projectors that a checkpoint can hold."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from oumi_kernel import ConfigError, Problem, dump
from oumi_plugins.optimizers._matrices import divided
from oumi_plugins.optimizers.galore import LowRankParams

PROJECTOR = "projector"
"""Where the libraries keep a projector among a parameter's state."""
_KEYS = "training.optimizer_kwargs"


def projected(params: LowRankParams, groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups, matrices to be projected in ones with `rank` and what else the libraries read there.

    Raises:
        ConfigError: A pattern of `target_modules` matches nothing, or no matrix is projected.
    """
    names = [name for group in groups for name, _ in group["params"]]
    patterns = params.target_modules
    for index, pattern in enumerate(patterns or ()):
        if not any(_matches(pattern, name) for name in names):
            raise _no_match(index, pattern, names)

    matrices, rest = divided(
        groups, lambda name, _: patterns is None or any(_matches(pattern, name) for pattern in patterns)
    )
    if not matrices:
        message = "no matrix that trains is projected."
        hint = "Name modules in target_modules that hold matrices within the model, or use adamw."
        raise ConfigError(Problem(code="no-match", path=f"{_KEYS}.target_modules", message=message, hint=hint))
    own = {key: value for key, value in dump(params).items() if key != "target_modules"}
    return [*({**group, **own} for group in matrices), *rest]


def keep_projectors(optimizer: Optimizer, make: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]) -> Optimizer:
    """Give an optimizer its projectors, and let `state_dict` and `load_state_dict` take them apart and together again.

    Args:
        optimizer: An optimizer that would make a projector for each matrix at its first step.
        make: Returns a projector for a group and what is kept for a parameter.
    """

    def save(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        state = {index: _as_mapping(values) for index, values in saved["state"].items()}
        return {**saved, "state": state}

    def load(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        state = dict(saved["state"])
        for group, now in zip(saved["param_groups"], optimizer.param_groups, strict=True):
            for index, parameter in zip(group["params"], now["params"], strict=True):
                if PROJECTOR in state.get(index, {}):
                    values = {k: _beside(v, parameter) for k, v in state[index][PROJECTOR].items()}
                    projector = make(group, state[index])
                    vars(projector).update(values)
                    state[index] = {**state[index], PROJECTOR: projector}
        return {**saved, "state": state}

    for group in optimizer.param_groups:
        for parameter in group["params"] if "rank" in group else ():
            state = optimizer.state[parameter]
            state[PROJECTOR] = make(group, state)
    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load)
    return optimizer


class Compact:
    """Makes a projector of GaLore's keep what it projects by and no more: the library's is a view of a whole SVD.

    Such a view is also laid out in another way than what a checkpoint gives back, which would change the last bits.
    """

    def get_orthogonal_matrix(self, *arguments: Any, **settings: Any) -> Tensor:
        """Return the matrix by which gradients are projected."""
        matrix = super().get_orthogonal_matrix(*arguments, **settings)  # pyright: ignore
        return matrix.clone(memory_format=torch.contiguous_format)


def _as_mapping(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dict(vars(value)) if key == PROJECTOR else value for key, value in values.items()}


def _beside(value: Any, parameter: Tensor) -> Any:
    return value.to(parameter.device) if isinstance(value, torch.Tensor) else value


def _matches(pattern: str, name: str) -> bool:
    return f".{pattern}." in f".{name}."


def _no_match(index: int, pattern: str, names: Sequence[str]) -> ConfigError:
    parts = sorted({part for name in names for part in name.split(".")[:-1] if not part.isdigit()})
    close = difflib.get_close_matches(pattern, parts, 1)
    hint = f"did you mean '{close[0]}'?" if close else f"Parts of names: {', '.join(parts)}."
    message = f"'{pattern}' matches no module whose weights train."
    return ConfigError(Problem(code="no-match", path=f"{_KEYS}.target_modules[{index}]", message=message, hint=hint))
