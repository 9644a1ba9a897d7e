"""The state of an optimizer as two files: tensors as safetensors, everything else as JSON.

An optimizer's `state_dict` may hold tensors, numbers, texts, and mappings of these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file

from oumi_kernel import CheckpointError

TENSORS = "optimizer.safetensors"
SCALARS = "optimizer.json"


class State(msgspec.Struct, frozen=True):
    """The state of an optimizer in two parts.

    Attributes:
        tensors: Its tensors by `NAME:KEY`, or `NAME:KEY/KEY` of a mapping within; NAME is a parameter's.
        rest: What is no tensor, its groups, and its kind.
    """

    tensors: dict[str, torch.Tensor]
    rest: dict[str, Any]


def state_of(optimizer: Any) -> State:
    """Return the state of an optimizer."""
    state = optimizer.state_dict()
    names = _names(state["param_groups"])
    tensors: dict[str, torch.Tensor] = {}
    rest = {names[index]: _without_tensors(values, names[index], tensors) for index, values in state["state"].items()}
    return State(tensors, {"optimizer": _kind(optimizer), "state": rest, "param_groups": state["param_groups"]})


def write_tensors(state: State, directory: Path) -> None:
    """Write the tensors of a state, all of them whole."""
    save_file(_apart(state.tensors), directory / TENSORS)


def write_rest(state: State, directory: Path, **beside: Any) -> None:
    """Write what is no tensor.

    Raises:
        CheckpointError: The state holds something that is neither a tensor nor a number, text or mapping.
    """
    (directory / SCALARS).write_text(json.dumps({**state.rest, **beside}, default=_refuse))


def parameters_of(optimizer: Any) -> dict[str, torch.Tensor]:
    """Return the parameters of an optimizer by their names."""
    groups = optimizer.param_groups
    return {n: p for group in groups for n, p in zip(group["param_names"], group["params"], strict=True)}


def read_optimizer(optimizer: Any, directory: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Restore an optimizer, and return what `write_rest` wrote.

    Args:
        optimizer: The optimizer.
        directory: Where from.
        tensors: The tensors of the state as the optimizer is to have them.

    Raises:
        CheckpointError: The state is that of other parameters, or of another optimizer.
    """
    record = json.loads((directory / SCALARS).read_bytes())
    if record["optimizer"] != _kind(optimizer):
        message = f"the optimizer's state in {directory} is that of {record['optimizer']}."
        raise CheckpointError(f"{message} Name that optimizer, or train anew.")
    now = optimizer.state_dict()["param_groups"]
    groups = [_like(saved, current) for saved, current in zip(record["param_groups"], now, strict=False)]
    if [group.get("param_names") for group in groups] != [group.get("param_names") for group in now]:
        raise CheckpointError(f"the optimizer's state in {directory} is that of other parameters.")
    indices = {name: index for index, name in _names(now).items()}
    for key, tensor in tensors.items():
        name, _, path = key.rpartition(":")
        *outer, last = path.split("/")
        values = record["state"].setdefault(name, {})
        for part in outer:
            values = values.setdefault(part, {})
        values[last] = tensor
    state = {indices[name]: values for name, values in record["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return record


def _without_tensors(values: Mapping[str, Any], name: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return what is no tensor; tensors go into `tensors`, as `NAME:KEY` or, of a mapping within, `NAME:KEY/KEY`."""
    rest: dict[str, Any] = {}
    for key, value in values.items():
        place = f"{name}/{key}" if ":" in name else f"{name}:{key}"
        if isinstance(value, torch.Tensor):
            tensors[place] = value
        elif isinstance(value, Mapping):
            rest[key] = _without_tensors(value, place, tensors)
        else:
            rest[key] = value
    return rest


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors that share no memory, which a file cannot hold; tables that optimizers share are small."""
    seen: set[int] = set()
    result: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        start = tensor.untyped_storage().data_ptr()
        result[key] = tensor.clone(memory_format=torch.contiguous_format) if start in seen else tensor.contiguous()
        seen.add(start)
    return result


def _kind(optimizer: Any) -> str:
    """Return the name of an optimizer's class; of one that is put together, the names of all its parts."""
    return " and ".join(type(part).__name__ for part in getattr(optimizer, "parts", (optimizer,)))


def _names(groups: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return the optimizer's index of each parameter with the parameter's name."""
    return {i: name for group in groups for i, name in zip(group["params"], group["param_names"], strict=True)}


def _like(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Return saved settings with the lists of JSON as the tuples that they were."""
    return {key: tuple(value) if isinstance(current.get(key), tuple) else value for key, value in saved.items()}


def _refuse(value: object) -> Any:
    message = f"the optimizer's state holds a {type(value).__name__}, which no checkpoint can hold."
    raise CheckpointError(f"{message} Its author should let state_dict give tensors, numbers and mappings of them.")
