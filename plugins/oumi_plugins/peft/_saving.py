"""Writing an adapter, reading it back to check it, and reading its weights into a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from oumi_kernel import CheckpointError
from oumi_plugins.peft._adapter import ADAPTER, quiet
from oumi_plugins.peft._conversion import ordinary_config, with_start, without_start
from oumi_plugins.strategies.shards import divided_like


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """What is saved.

    Attributes:
        model: The model; a wrapper that holds it as `module` is looked through.
        weights: Name -> whole tensor, the model's own names.
        shapes: Name -> shape of everything that must be saved, under the names of files.
        initial: The adapter as it began, where that changed the model; None where it did not.
        moved: Weights that training has changed, by the model's names.
    """

    model: Any
    weights: Mapping[str, torch.Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    initial: Mapping[str, torch.Tensor] | None = None
    moved: frozenset[str] = frozenset()


def save_adapter(saved: Saved, tokenizer: Any, directory: Path) -> None:
    """Write the adapter, tokenizer and chat template, and read the adapter again to check it.

    Raises:
        CheckpointError: The folder cannot be written, or does not hold the adapter that was to be saved.
    """
    model = unwrapped(saved.model)
    expected = adapter_state(model, saved.weights)
    _check_shapes(expected, saved.shapes, directory)
    try:
        with quiet():
            model.save_pretrained(str(directory), state_dict=dict(saved.weights), save_embedding_layers=False)
        if saved.initial is not None:
            expected = without_start(expected, saved.initial)
            save_file(expected, directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
            ordinary_config(model.active_peft_config).save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)  # a form to fill in, which would replace the user's
        _save_tokenizer(tokenizer, directory)
    except (OSError, SafetensorError, RuntimeError) as error:
        message = f"cannot write the adapter to {directory}: {error}. Free some space, or choose another output_dir."
        raise CheckpointError(message) from error
    found = read_weights(directory / SAFETENSORS_WEIGHTS_NAME)
    _check(found, expected, directory)
    names = (name.replace(f".{ADAPTER}", "") for name in saved.moved)
    empty = sorted(name for name in names if name in found and found[name].numel() and not found[name].any())
    if empty:
        raise CheckpointError(
            f"{directory}: {len(empty)} weights that were trained are all zero, such as '{empty[0]}'."
        )


def load_adapter(model: Any, file: Path, initial: Mapping[str, torch.Tensor] | None = None) -> None:
    """Read every weight of a saved adapter into `model`.

    Args:
        model: The model.
        file: The file of weights.
        initial: The adapter as it began in this run, where that changed the model.

    Raises:
        CheckpointError: The file is missing or damaged, a weight is missing, unknown, or has another shape, or the
            adapter began in another way.
    """
    model, found = unwrapped(model), read_weights(file)
    if initial is not None:
        found = with_start(found, initial, file)
    held = adapter_state(model, model.state_dict())
    _check(found, held, file)
    found = {name: divided_like(tensor, held[name]) for name, tensor in found.items()}
    if not any(parameter.is_meta for parameter in model.parameters()):  # a dry run's model has nowhere to put them
        set_peft_model_state_dict(model, found, adapter_name=ADAPTER)


def unwrapped(model: Any) -> PeftModel:
    """Return the library's model, without what a strategy put around it."""
    while not isinstance(model, PeftModel):
        model = model.module
    return model


def adapter_state(model: PeftModel, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the adapter's part of a model's weights, under the names of files."""
    with quiet():
        return get_peft_model_state_dict(
            model, state_dict=dict(weights), adapter_name=ADAPTER, save_embedding_layers=False
        )


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a file.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        message = f"{file.parent} holds no readable adapter: {' '.join(str(error).split())}"
        raise CheckpointError(message) from error


def _save_tokenizer(tokenizer: Any, directory: Path) -> None:
    try:
        tokenizer.save_pretrained(directory)
    except Exception as error:
        # The library of fast tokenizers raises nothing more specific when a file cannot be written.
        raise OSError(str(error)) from error


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _check(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], place: Path) -> None:
    """Refuse an adapter that is not whole.

    Raises:
        CheckpointError: A weight is missing, unknown, has another shape, or is not finite.
    """
    _check_shapes(found, shapes_of(expected), place)
    for name, tensor in found.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{place}: the weight '{name}' is not finite.")


def _check_shapes(found: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], place: Path) -> None:
    for names, meaning in ((shapes.keys() - found, "lacks"), (found.keys() - shapes, "has unknown")):
        if names:
            raise CheckpointError(f"{place} {meaning} {len(names)} weights, among them '{min(names)}'.")
    for name, tensor in found.items():
        if tuple(tensor.shape) != shapes[name]:
            raise CheckpointError(
                f"{place}: the weight '{name}' has the shape {tuple(tensor.shape)} instead of {shapes[name]}."
            )
