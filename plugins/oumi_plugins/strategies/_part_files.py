"""Tensors in files of parts: each process writes what it has, and any number of processes reads what it needs.

It is torch's distributed checkpoint (DCP) in files of safetensors, which say where each part belongs; nothing of them
is executed when they are read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from oumi_kernel import CheckpointError

MODEL, OPTIMIZER = "model_parts", "optimizer_parts"
"""The folders of these files in a checkpoint."""
Make = Callable[[str, torch.Size, torch.dtype], torch.Tensor]
"""Returns the tensor into which one of a name, shape and number format is read; on `meta` if it is not to be."""


def write_parts(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write tensors, whole or divided between processes; every process must call this.

    Raises:
        CheckpointError: A process could not.
    """
    with _errors(f"cannot write {folder}"):
        dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_parts(folder: Path, make: Make) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder; every process must call this.

    Raises:
        CheckpointError: A file cannot be read, or a part of a tensor is in none of them.
    """
    with _errors(f"{folder} cannot be read"):
        reader = dcp.HuggingFaceStorageReader(str(folder))
        into: dict[str, torch.Tensor] = {}
        for name, kept in reader.read_metadata().state_dict_metadata.items():
            if isinstance(kept, TensorStorageMetadata):
                _check_whole(folder, name, kept)
                into[name] = make(name, kept.size, kept.properties.dtype)
        wanted = {name: tensor for name, tensor in into.items() if not tensor.is_meta}
        if wanted:
            dcp.load(wanted, storage_reader=reader)
    return into


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's weights, those that are tied once."""
    once = {id(tensor): name for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    state = model.state_dict()
    return {name: state[name] for name in reversed(once.values())}


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read every weight of a model into it; for one on the device `meta`, only compare names and shapes.

    Raises:
        CheckpointError: A file cannot be read, or a weight is missing, unknown, or has another shape.
    """
    held = weights_of(model)

    def there(name: str, size: torch.Size, _: torch.dtype) -> torch.Tensor:
        if name not in held or held[name].shape != size:
            own = tuple(held[name].shape) if name in held else "no such weight"
            raise CheckpointError(f"{folder}: the weight '{name}' has the shape {tuple(size)}, the model {own}.")
        return held.pop(name)

    with torch.no_grad():
        read_parts(folder, there)
    if held:
        raise CheckpointError(f"{folder} lacks {len(held)} weights, among them '{next(iter(held))}'.")


def _check_whole(folder: Path, name: str, kept: TensorStorageMetadata) -> None:
    there = sum(chunk.sizes.numel() for chunk in kept.chunks)
    if there != kept.size.numel():
        raise CheckpointError(f"{folder} lacks a part of '{name}': {there} of {kept.size.numel()} numbers are there.")


@contextmanager
def _errors(subject: str) -> Generator[None]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            yield
    except (OSError, SafetensorError, KeyError, ValueError, dcp.CheckpointException) as error:
        reason = " ".join(str(error).split())[:400]
        raise CheckpointError(f"{subject}: {reason}") from error
