"""Names of models: the revision that is meant, and what to say when there is no such model."""

from __future__ import annotations

from pathlib import Path

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config import ModelParams

LONGEST_REASON = 300


def revision(params: ModelParams) -> str:
    """Return the branch, tag or commit of the model's repository."""
    return params.model_revision or "main"


def not_found(key: str, name: str, what: str, error: Exception) -> ConfigError:
    """Return the error for a model or tokenizer that could not be loaded.

    Args:
        key: The key that names it.
        name: The name, as a path or a hub id.
        what: `model` or `tokenizer`.
        error: What the library said.
    """
    folder, reason = Path(name), " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
    hint = "It needs config.json, model.safetensors and the tokenizer's files, as save_pretrained writes them."
    if folder.is_file():
        message, hint = f"'{name}' is a file.", "Give the folder that holds config.json."
    elif folder.is_dir() and what == "model" and not (folder / "config.json").is_file():
        message = f"the folder '{name}' has no config.json, so it holds no model."
    elif folder.is_dir():
        message = f"the folder '{name}' holds no {what} that transformers can load: {reason}"
    elif name.startswith(("/", ".")):
        message, hint = f"there is no folder '{name}'.", "Check the path; ./name is read beside the configuration file."
    else:
        message = f"'{name}' is no folder here, and the {what} could not be had from the hub: {reason}"
        hint = (
            "Check the name and the network, or give the path of a folder; a gated model needs HF_TOKEN of an account "
            "that was given access."
        )
    return ConfigError(Problem(code="no-model", path=key, message=message, hint=hint))
