"""Writing an adapter, reading it back to check it, and reading its weights into a model."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file

from oumi_kernel import CheckpointError
from oumi_plugins.peft._adapter import ADAPTER


def save_adapter(
    model: Any, weights: Mapping[str, torch.Tensor], tokenizer: Any, directory: Path, moved: Collection[str]
) -> None:
    """Write the adapter, tokenizer and chat template, and read the adapter again to check it.

    Args:
        model: The model; a wrapper that holds it as `module` is looked through.
        weights: Name -> whole tensor, the model's own names.
        tokenizer: The tokenizer, its chat template set.
        directory: Where to write.
        moved: Weights that training has changed, by the model's names.

    Raises:
        CheckpointError: The folder cannot be written, or does not hold the adapter that was to be saved.
    """
    model = unwrapped(model)
    try:
        with warnings.catch_warnings(category=UserWarning, action="ignore"):
            model.save_pretrained(directory, state_dict=dict(weights), save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)  # a form to fill in, which would replace the user's
        _save_tokenizer(tokenizer, directory)
    except (OSError, SafetensorError, RuntimeError) as error:
        message = f"cannot write the adapter to {directory}: {error}. Free some space, or choose another output_dir."
        raise CheckpointError(message) from error
    found = _read(directory)
    _check(found, _expected(model, weights), directory)
    saved = (name.replace(f".{ADAPTER}", "") for name in moved)
    empty = sorted(name for name in saved if name in found and not bool(found[name].any()))
    if empty:
        raise CheckpointError(
            f"{directory}: {len(empty)} weights that were trained are all zero, such as '{empty[0]}'."
        )


def load_adapter(model: Any, directory: Path) -> None:
    """Read every weight of a saved adapter into `model`.

    Raises:
        CheckpointError: The file is missing or damaged, or a weight is missing, unknown, or has another shape.
    """
    model = unwrapped(model)
    found = _read(directory)
    _check(found, _expected(model, model.state_dict()), directory)
    set_peft_model_state_dict(model, found, adapter_name=ADAPTER)


def unwrapped(model: Any) -> PeftModel:
    """Return the library's model, without what a strategy put around it."""
    while not isinstance(model, PeftModel):
        model = model.module
    return model


def _expected(model: PeftModel, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings(category=UserWarning, action="ignore"):
        return get_peft_model_state_dict(
            model, state_dict=dict(weights), adapter_name=ADAPTER, save_embedding_layers=False
        )


def _save_tokenizer(tokenizer: Any, directory: Path) -> None:
    try:
        tokenizer.save_pretrained(directory)
    except Exception as error:
        # The library of fast tokenizers raises nothing more specific when a file cannot be written.
        raise OSError(str(error)) from error


def _read(directory: Path) -> dict[str, torch.Tensor]:
    file = directory / SAFETENSORS_WEIGHTS_NAME
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory} holds no readable adapter: {' '.join(str(error).split())}") from error


def _check(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], directory: Path) -> None:
    """Refuse an adapter that is not whole.

    Raises:
        CheckpointError: A weight is missing, unknown, has another shape, or is not finite.
    """
    for names, meaning in ((expected.keys() - found, "lacks"), (found.keys() - expected, "has unknown")):
        if names:
            raise CheckpointError(f"{directory} {meaning} {len(names)} weights, among them '{min(names)}'.")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
            raise CheckpointError(f"{directory}: the weight '{name}' has the shape {shapes}.")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{directory}: the weight '{name}' is not finite.")
