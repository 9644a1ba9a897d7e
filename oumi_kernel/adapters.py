"""Which adapter a run goes on with, and which model that adapter belongs to: told by files, without any library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oumi_kernel.contracts import Run
from oumi_kernel.errors import ConfigError, Problem

CONFIG = "adapter_config.json"
"""The file that makes a folder an adapter, as peft writes it."""


def adapter_of(run: Run) -> tuple[str, str] | None:
    """Return (key, name) of the adapter that a run goes on with: a folder or a hub id; None if it begins anew.

    A hub id in `model.model_name` is taken for a model: what stands there is not known without asking the hub.
    """
    model = run.config.model
    if model.adapter_model is not None:
        return "model.adapter_model", run.locate(model.adapter_model)
    name = run.locate(model.model_name)
    return ("model.model_name", name) if (Path(name) / CONFIG).is_file() else None


def base_of(run: Run) -> str:
    """Return the model of a run, a folder or a hub id: for a folder that holds an adapter alone, the one that it names.

    Raises:
        ConfigError: The adapter names none.
    """
    name = run.locate(run.config.model.model_name)
    folder = Path(name)
    if not (folder / CONFIG).is_file() or (folder / "config.json").is_file():
        return name
    try:
        content: Any = json.loads((folder / CONFIG).read_bytes())
        base = content["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        message = f"the folder '{name}' holds an adapter that does not say which model it belongs to."
        hint = "Name the model here, and the adapter as model.adapter_model."
        raise ConfigError(Problem(code="no-model", path="model.model_name", message=message, hint=hint))
    return base
