"""Writing a model folder, opening it again to check it, and reading its weights back."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as library_logging

from oumi_kernel import CheckpointError
from oumi_plugins.models._bars import no_bars
from oumi_plugins.models._generation import generation_settings
from oumi_plugins.strategies.shards import divided_like

BROKEN = (OSError, SafetensorError, ValueError, RuntimeError, KeyError)
"""What the library raises for a folder that it cannot read."""


def save_model(
    model: Any, weights: Mapping[str, torch.Tensor], tokenizer: Any, directory: Path, *, use_cache: bool | None
) -> None:
    """Write model, generation settings, tokenizer and chat template, and open the folder again to check it.

    Args:
        model: The model; a wrapper that holds it as `module` is looked through.
        weights: Name -> whole tensor, the model's own names.
        tokenizer: The tokenizer, its chat template set.
        directory: Where to write.
        use_cache: What `config.use_cache` was before training switched it off.

    Raises:
        CheckpointError: A weight was not gathered whole, the folder cannot be written, or the model cannot be read
            back from it.
    """
    model = unwrapped(model)
    _refuse_parts(model, weights)
    trained_with = model.config.use_cache, model.generation_config
    model.config.use_cache = trained_with[0] if use_cache is None else use_cache
    model.generation_config = generation_settings(model, tokenizer)
    try:
        with _quiet():
            model.save_pretrained(directory, state_dict=dict(weights))
        _save_tokenizer(tokenizer, directory)
    except (OSError, SafetensorError, RuntimeError) as error:
        message = f"cannot write the model to {directory}: {error}. Free some space, or choose another output_dir."
        raise CheckpointError(message) from error
    finally:
        model.config.use_cache, model.generation_config = trained_with
    _read(model, directory, torch.device("meta"))


def _refuse_parts(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse a part of a weight, nothing, or zeros, where the model holds all of it. Its own zeros are no error."""
    held: Mapping[str, Any] = model.state_dict()
    for name, own in held.items():
        tensor = weights.get(name, own)
        if tensor.shape != own.shape:
            shapes = f"{tuple(tensor.shape)} of {tuple(own.shape)}"
            raise CheckpointError(f"the weight '{name}' was not gathered whole: {shapes}. Nothing was written.")
        here = own.to_local() if hasattr(own, "to_local") else own
        if tensor is own or tensor.is_meta or here.is_meta or tensor.data_ptr() == here.data_ptr():
            continue
        if not bool(tensor.any()) and bool(here.any()):
            raise CheckpointError(f"the weight '{name}' was gathered as zeros. Nothing was written.")


def _save_tokenizer(tokenizer: Any, directory: Path) -> None:
    try:
        tokenizer.save_pretrained(directory)
    except Exception as error:
        # The library of fast tokenizers raises nothing more specific when a file cannot be written.
        raise OSError(str(error)) from error


def load_weights(model: nn.Module, directory: Path) -> None:
    """Read every weight of a model folder into `model`; for one on the device `meta`, only compare names and shapes.

    Raises:
        CheckpointError: A file is missing or damaged, or a weight is missing, unknown, or has another shape.
    """
    model = unwrapped(model)
    is_outline = next(model.parameters()).is_meta
    found = _read(model, directory, torch.device("meta") if is_outline else None)
    held = model.state_dict()
    try:
        state = {name: divided_like(tensor, held.get(name, tensor)) for name, tensor in found.state_dict().items()}
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"the model in {directory} is another one: {reason}") from error


def unwrapped(model: Any) -> Any:
    """Return the model that was built, without what a strategy put around it."""
    while not hasattr(model, "save_pretrained") and hasattr(model, "module"):
        model = model.module
    return model


def _read(model: Any, directory: Path, device: torch.device | None) -> nn.Module:
    """Open a model folder as its users will, by the library that renames and fuses weights of some architectures.

    On the device `meta` only names and shapes are read.
    """
    try:
        with _quiet():
            found, report = type(model).from_pretrained(
                directory, dtype=model.dtype, device_map=device, output_loading_info=True, use_safetensors=True
            )
    except BROKEN as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{directory} holds no readable model: {reason}") from error
    for key, meaning in (("missing_keys", "lacks"), ("unexpected_keys", "has unknown")):
        names = sorted(report[key])
        if names:
            raise CheckpointError(f"{directory} {meaning} {len(names)} weights, among them '{names[0]}'.")
    return found


@contextmanager
def _quiet() -> Generator[None]:
    """Keep the library's bars and reports off the terminal; what is wrong is said by an error."""
    level = library_logging.get_verbosity()
    library_logging.set_verbosity(library_logging.CRITICAL)
    try:
        with no_bars():
            yield
    finally:
        library_logging.set_verbosity(level)
