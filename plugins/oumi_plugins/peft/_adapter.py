"""Putting an adapter into a model."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import peft
import torch
from torch import nn

from oumi_kernel import ConfigError, Problem
from oumi_kernel.contracts import Run

ADAPTER = "default"
"""The name under which the library keeps the one adapter of a model."""
INITIALISATIONS: dict[str, bool | str] = {"default": True, "random": False, "pisa": "pissa"}
"""Names of the section whose value in the library is another."""
ALL_LINEAR = "all-linear"


def adapted(model: nn.Module, config_class: str, settings: Mapping[str, Any], run: Run) -> nn.Module:
    """Return the library's model around `model`, its adapter drawn from `training.seed` alone.

    Args:
        model: The model; on the device `meta` for one without weights.
        config_class: The config class of the method.
        settings: Fields of it.
        run: The run.

    Raises:
        ConfigError: The library refuses a setting.
    """
    if not run.config.model.load_pretrained_weights:
        message = "an adapter is saved without its model, and random weights cannot be had again."
        hint = "Set load_pretrained_weights: true, or train the whole model (training.use_peft: false)."
        path = "model.load_pretrained_weights"
        raise ConfigError(Problem(code="not-served", path=path, message=message, hint=hint))
    without_weights = next(model.parameters()).is_meta
    fields = _fields(config_class, settings)
    if without_weights and "init_lora_weights" in fields:
        fields["init_lora_weights"] = True  # there is nothing to start from
    try:
        config = getattr(peft, config_class)(task_type=peft.TaskType.CAUSAL_LM, **fields)
        with _seeded(run.config.training.seed), warnings.catch_warnings(category=FutureWarning, action="ignore"):
            model = peft.get_peft_model(model, config, adapter_name=ADAPTER, low_cpu_mem_usage=without_weights)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        message = f"peft refuses these settings: {' '.join(str(error).split())}"
        raise ConfigError(Problem(code="wrong-value", path="peft", message=message)) from error
    config.base_model_name_or_path, config.revision = _base(run)
    return model


def _fields(config_class: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as the library's config takes them."""
    fields = {key: _plain(value) for key, value in settings.items()}
    if "target_modules" in fields:
        fields["target_modules"] = _targets(fields["target_modules"])
    if fields.get("exclude_modules"):
        fields["exclude_modules"] = "|".join(f"(?:{pattern})" for pattern in fields["exclude_modules"])
    if "init_lora_weights" in fields:
        name = str(fields["init_lora_weights"]).lower()
        fields["init_lora_weights"] = INITIALISATIONS.get(name, name)
    return fields


def _plain(value: Any) -> Any:
    """Return a struct of parameters as the library's object of that name."""
    if isinstance(value, msgspec.Struct):
        return getattr(peft, type(value).__name__)(**msgspec.structs.asdict(value))
    return value


def _targets(value: list[str] | str) -> list[str] | str:
    if value in (ALL_LINEAR, [ALL_LINEAR]):
        return ALL_LINEAR
    if isinstance(value, str) and "," in value and not set(value) & set("()[]{}|*+?\\"):
        message = f"'{value}' is text: one pattern, which no module's name matches."
        hint = f"Write a list: [{', '.join(part.strip() for part in value.split(','))}]."
        raise ConfigError(Problem(code="wrong-value", path="peft.lora_target_modules", message=message, hint=hint))
    return value


def _base(run: Run) -> tuple[str, str | None]:
    """Return by which name and revision the model is found again, from any folder."""
    name = run.locate(run.config.model.model_name)
    return (str(Path(name).resolve()), None) if Path(name).is_dir() else (name, run.config.model.model_revision)


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Draw random numbers from `seed`, and leave those of everybody else as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
