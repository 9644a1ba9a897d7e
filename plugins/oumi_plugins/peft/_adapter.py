"""Putting a new adapter into a model."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import peft
import torch
from torch import nn

from oumi_kernel import ConfigError, Problem
from oumi_kernel.adapters import base_of
from oumi_kernel.config import PeftParams
from oumi_kernel.contracts import Run
from oumi_plugins.peft._eva import start_from_data
from oumi_plugins.peft._matching import ALL_LINEAR
from oumi_plugins.peft._method import SECTION

ADAPTER = "default"
"""The name under which the library keeps the one adapter of a model."""
INITIALISATIONS: dict[str, bool | str] = {"default": True, "random": False, "pisa": "pissa"}
"""Names of the section whose value in the library is another."""
DRAWN = (False, "gaussian")
"""Starts of the library that are drawn, whatever they are beside."""
FROM_DATA = "eva"
"""The start that looks at data."""


def config_of(config_class: str, settings: Mapping[str, Any], run: Run) -> Any:
    """Return the library's config with these fields.

    Raises:
        ConfigError: The library refuses one.
    """
    with refusals(run), quiet():
        return getattr(peft, config_class)(task_type=peft.TaskType.CAUSAL_LM, **fields_of(settings, run))


def put_in(model: nn.Module, config: Any, examples: Mapping[str, Sequence[Any]], run: Run) -> peft.PeftModel:
    """Return the library's model around `model`, its adapter drawn from `training.seed` alone.

    Args:
        model: The model; on the device `meta` for one without weights.
        config: The library's config.
        examples: Split -> prepared examples.
        run: The run.

    Raises:
        ConfigError: The library refuses a setting.
    """
    without_weights = next(model.parameters()).is_meta
    start = getattr(config, "init_lora_weights", None)
    if without_weights and start is not None:
        config.init_lora_weights = True  # there is nothing to start from
    if without_weights and config.is_prompt_learning:
        config.prompt_tuning_init = peft.PromptTuningInit.RANDOM
    with refusals(run), seeded(run.config.training.seed), quiet():
        is_empty = without_weights and not config.is_prompt_learning
        try:
            found: Any = peft.get_peft_model(model, config, adapter_name=ADAPTER, low_cpu_mem_usage=is_empty)
        except AttributeError:
            _refuse_start(start, config)  # the library looks for the weight of a module
            raise
        _refuse_start(start, config)
        if start == FROM_DATA and not without_weights:
            start_from_data(found, examples["train"], run)
    config.base_model_name_or_path, config.revision = _base(run)
    return found


def _refuse_start(start: Any, config: Any) -> None:
    """Refuse to begin adapters of parameters, such as experts, with a part of a module's weight or from its inputs.

    Raises:
        ConfigError: Such a start was asked for. Some parameters are known only once the library has looked for them.
    """
    if getattr(config, "target_parameters", None) and start not in (None, True, *DRAWN):
        message = f"'{start}' is a start for modules; adapters of parameters ({_listed(config)}) cannot begin so."
        hint = "Set it to default, random or gaussian, or adapt modules only."
        raise ConfigError(Problem(code="not-served", path="peft.lora_init_weights", message=message, hint=hint))


def _listed(config: Any) -> str:
    return ", ".join(sorted(config.target_parameters))


@contextmanager
def refusals(run: Run) -> Generator[None]:
    """Turn what the library says of settings that it does not take into an error at the key that it speaks of.

    Raises:
        ConfigError: It refuses them.
    """
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        said = " ".join(str(error).split())
        path = next((path for name, path in _given(run) if re.search(rf"\b{re.escape(name)}\b", said)), "peft")
        message = f"peft refuses these settings: {said}"
        raise ConfigError(Problem(code="wrong-value", path=path, message=message)) from error


def _given(run: Run) -> Generator[tuple[str, str]]:
    """Yield the fields of the library's config that the configuration sets, each with its key."""
    section, defaults = run.config.peft, PeftParams()
    for name in section.peft_kwargs:
        yield name, f"peft.peft_kwargs.{name}"
    for key, name in SECTION.items():
        if getattr(section, key) != getattr(defaults, key):
            yield name, f"peft.{key}"


def fields_of(settings: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Return settings as the library's config takes them; modules that do not train get no adapter."""
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
    if fields.get("init_lora_weights") == "loftq":
        fields["loftq_config"] = fields.get("loftq_config") or peft.LoftQConfig()
    return fields


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Draw random numbers from `seed`, and leave those of everybody else as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet() -> Generator[None]:
    """Keep away what the library warns of: what a user must know is an error or in the header.

    CC and CXX are put back: where the extension of BOFT does not compile, the library leaves both at `gcc`, and with
    that torch links no C++ library.
    """
    before = {name: os.environ.get(name) for name in ("CC", "CXX")}
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, UserWarning, RuntimeWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


def _plain(value: Any) -> Any:
    """Return a struct of parameters as the library's object of that name."""
    if isinstance(value, msgspec.Struct):
        return getattr(peft, type(value).__name__)(**msgspec.structs.asdict(value))
    return value


def _base(run: Run) -> tuple[str, str | None]:
    """Return by which name and revision the model is found again, from any folder."""
    name = base_of(run)
    return (str(Path(name).resolve()), None) if Path(name).is_dir() else (name, run.config.model.model_revision)
