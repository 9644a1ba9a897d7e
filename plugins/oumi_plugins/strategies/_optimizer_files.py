"""The state of an optimizer as two files: tensors as safetensors, everything else as JSON.

An optimizer's `state_dict` may hold tensors, numbers, texts, and mappings of these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from oumi_kernel import CheckpointError

TENSORS = "optimizer.safetensors"
SCALARS = "optimizer.json"


def write_optimizer(optimizer: Any, directory: Path, state: Mapping[str, Any], **beside: Any) -> None:
    """Write the state of an optimizer.

    Args:
        optimizer: The optimizer.
        directory: Where to.
        state: Its `state_dict`, with whole tensors.
        **beside: What else goes into the JSON.

    Raises:
        CheckpointError: The state holds something that is neither a tensor nor a number, text or mapping.
    """
    names = _names(state["param_groups"])
    tensors: dict[str, torch.Tensor] = {}
    scalars = {
        names[index]: _without_tensors(values, names[index], tensors) for index, values in state["state"].items()
    }
    save_file(_apart(tensors), directory / TENSORS)
    record = {"optimizer": _kind(optimizer), "state": scalars, "param_groups": state["param_groups"], **beside}
    (directory / SCALARS).write_text(json.dumps(record, default=_refuse))


def read_optimizer(
    optimizer: Any,
    directory: Path,
    place: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda tensor, _: tensor,
    read: Callable[[Path], Mapping[str, torch.Tensor]] = load_file,
) -> dict[str, Any]:
    """Restore an optimizer from what `write_optimizer` wrote, and return the JSON.

    Args:
        optimizer: The optimizer.
        directory: Where from.
        place: Returns a tensor of the state of a parameter as the optimizer is to have it.
        read: Returns the tensors of a file.

    Raises:
        CheckpointError: The state is that of other parameters, or of another optimizer.
    """
    tensors = read(directory / TENSORS)
    record = json.loads((directory / SCALARS).read_bytes())
    if record["optimizer"] != _kind(optimizer):
        message = f"the optimizer's state in {directory} is that of {record['optimizer']}."
        raise CheckpointError(f"{message} Name that optimizer, or train anew.")
    now = optimizer.state_dict()["param_groups"]
    groups = [_like(saved, current) for saved, current in zip(record["param_groups"], now, strict=False)]
    if [group.get("param_names") for group in groups] != [group.get("param_names") for group in now]:
        raise CheckpointError(f"the optimizer's state in {directory} is that of other parameters.")
    indices = {name: index for index, name in _names(now).items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        name, _, path = key.rpartition(":")
        *outer, last = path.split("/")
        values = record["state"].setdefault(name, {})
        for part in outer:
            values = values.setdefault(part, {})
        values[last] = place(tensor, parameters[indices[name]])
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
