"""Putting an adapter into a model."""

from __future__ import annotations

import re
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
from oumi_kernel.report import Report
from oumi_plugins.peft._matching import ALL_LINEAR, MATCHERS, check_patterns, names_of
from oumi_plugins.peft._method import SECTION
from oumi_plugins.peft._reporting import report_on

ADAPTER = "default"
"""The name under which the library keeps the one adapter of a model."""
INITIALISATIONS: dict[str, bool | str] = {"default": True, "random": False, "pisa": "pissa"}
"""Names of the section whose value in the library is another."""


def adapted(model: nn.Module, config_class: str, settings: Mapping[str, Any], run: Run) -> tuple[nn.Module, Report]:
    """Return the library's model around `model`, its adapter drawn from `training.seed` alone; and what it adapts.

    Args:
        model: The model; on the device `meta` for one without weights.
        config_class: The config class of the method.
        settings: Fields of it.
        run: The run.

    Raises:
        ConfigError: A pattern matches nothing, or the library refuses a setting.
    """
    if not run.config.model.load_pretrained_weights:
        message = "an adapter is saved without its model, and random weights cannot be had again."
        hint = "Set load_pretrained_weights: true, or train the whole model (training.use_peft: false)."
        path = "model.load_pretrained_weights"
        raise ConfigError(Problem(code="not-served", path=path, message=message, hint=hint))
    names = names_of(model)
    asked = {key: getattr(run.config.peft, key) for key in MATCHERS if SECTION[key] in settings}
    _refuse_text_lists(asked.get("lora_target_modules"))
    check_patterns(names, asked)
    without_weights = next(model.parameters()).is_meta
    fields = _fields(settings, run)
    if without_weights and "init_lora_weights" in fields:
        fields["init_lora_weights"] = True  # there is nothing to start from
    with refusals("peft"), _seeded(run.config.training.seed), _quiet():
        config = getattr(peft, config_class)(task_type=peft.TaskType.CAUSAL_LM, **fields)
        model = peft.get_peft_model(model, config, adapter_name=ADAPTER, low_cpu_mem_usage=without_weights)
    config.base_model_name_or_path, config.revision = _base(run)
    return model, report_on(model, names, asked)


@contextmanager
def refusals(path: str) -> Generator[None]:
    """Turn what the library says of settings that it does not take into an error at a key.

    Raises:
        ConfigError: It refuses them.
    """
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        message = f"peft refuses these settings: {' '.join(str(error).split())}"
        raise ConfigError(Problem(code="wrong-value", path=path, message=message)) from error


def _fields(settings: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Return settings as the library's config takes them."""
    fields = {key: _plain(value) for key, value in settings.items()}
    if fields.get("target_modules") == [ALL_LINEAR]:
        fields["target_modules"] = ALL_LINEAR
    frozen = [rf"(.*\.)?{re.escape(name)}(\..*)?" for name in run.config.model.freeze_layers]
    excluded = [*(fields.get("exclude_modules") or ()), *frozen]
    if excluded:
        fields["exclude_modules"] = "|".join(f"(?:{pattern})" for pattern in excluded)
    if "init_lora_weights" in fields:
        name = str(fields["init_lora_weights"]).lower()
        fields["init_lora_weights"] = INITIALISATIONS.get(name, name)
    return fields


def _plain(value: Any) -> Any:
    """Return a struct of parameters as the library's object of that name."""
    if isinstance(value, msgspec.Struct):
        return getattr(peft, type(value).__name__)(**msgspec.structs.asdict(value))
    return value


def _refuse_text_lists(value: Any) -> None:
    """Refuse names with commas between them: the library would read them as one pattern."""
    if isinstance(value, str) and "," in value and not set(value) & set("()[]{}|*+?\\"):
        message = f"'{value}' is text: one pattern, which no module's name matches."
        hint = f"Write a list: [{', '.join(part.strip() for part in value.split(','))}]."
        raise ConfigError(Problem(code="wrong-value", path="peft.lora_target_modules", message=message, hint=hint))


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


@contextmanager
def _quiet() -> Generator[None]:
    """Keep away what the library warns of: what a user must know is an error or in the header."""
    with warnings.catch_warnings():
        for category in (FutureWarning, UserWarning, RuntimeWarning):
            warnings.simplefilter("ignore", category)
        yield
