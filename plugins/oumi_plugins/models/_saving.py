"""Writing a model folder, checking what was written, and reading it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from oumi_kernel import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def save_model(model: Any, weights: Mapping[str, torch.Tensor] | None, tokenizer: Any, directory: Path) -> None:
    """Write model, generation settings, tokenizer and chat template.

    Raises:
        CheckpointError: The folder cannot be written, or a tensor is missing from it or has another shape.
    """
    try:
        model.save_pretrained(directory, state_dict=dict(weights) if weights is not None else None)
        tokenizer.save_pretrained(directory)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the model to {directory}: {error}") from error
    _verify(model, directory)


def load_weights(model: nn.Module, directory: Path) -> None:
    """Read every weight of a model folder into `model`.

    Raises:
        CheckpointError: A file is missing or damaged, or a weight is missing, unknown, or has another shape.
    """
    with torch.no_grad():
        targets = dict(model.state_dict(keep_vars=True))
        for name, file in _files(directory).items():
            if name not in targets:
                raise CheckpointError(f"{file}: the model has no weight '{name}'.")
            found = _tensor(file, name)
            if found.shape != targets[name].shape:
                shapes = f"{tuple(found.shape)}; the model's is {tuple(targets[name].shape)}"
                raise CheckpointError(f"{file}: the weight '{name}' has shape {shapes}.")
            targets[name].copy_(found)
    _refuse_missing(model, directory)


def _verify(model: nn.Module, directory: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, file in _files(directory).items():
        with safe_open(file, framework="pt") as reader:
            found = tuple(reader.get_slice(name).get_shape())
        if name in shapes and found != shapes[name]:
            raise CheckpointError(f"{file}: '{name}' was written with shape {found} instead of {shapes[name]}.")
    _refuse_missing(model, directory)


def _refuse_missing(model: nn.Module, directory: Path) -> None:
    """Refuse a folder that lacks a weight; tied weights are one storage, written once."""
    written = set(_files(directory))
    storages: dict[int, list[str]] = {}
    for name, tensor in model.state_dict().items():
        storages.setdefault(tensor.data_ptr(), []).append(name)
    missing = [names[0] for names in storages.values() if not written.intersection(names)]
    if missing:
        raise CheckpointError(f"{directory} lacks {len(missing)} weights of the model, among them '{missing[0]}'.")


def _files(directory: Path) -> dict[str, Path]:
    """Return weight name -> file."""
    try:
        if (directory / INDEX).is_file():
            index = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
            return {name: directory / file for name, file in index.items()}
        with safe_open(directory / SINGLE, framework="pt") as reader:
            return dict.fromkeys(reader.keys(), directory / SINGLE)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory} holds no readable model: {error}") from error


def _tensor(file: Path, name: str) -> torch.Tensor:
    try:
        with safe_open(file, framework="pt") as reader:
            return reader.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
