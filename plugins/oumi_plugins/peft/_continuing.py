"""Going on with an adapter that was trained before: its own config counts, and what contradicts it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from oumi_kernel import ConfigError, Problem
from oumi_kernel.adapters import CONFIG
from oumi_kernel.contracts import Run
from oumi_plugins.peft._adapter import fields_of, quiet
from oumi_plugins.peft._matching import ALL_LINEAR, Names
from oumi_plugins.peft._method import SECTION
from oumi_plugins.peft._starts import why_not_here

WHICH = ("target_modules", "exclude_modules")
"""Fields that say together which modules are adapted; there are many ways to say the same."""
START = "init_lora_weights"
"""The field that says how a new adapter begins: of none that goes on."""
KEYS = {field: f"peft.{key}" for key, field in SECTION.items()}


def own_config(key: str, name: str) -> Any:
    """Return the config of an adapter, made ready to train on.

    Args:
        key: The key that names the adapter.
        name: A folder or a hub id.

    Raises:
        ConfigError: There is no such adapter, or it is for another task.
    """
    try:
        with quiet():
            config: Any = PeftConfig.from_pretrained(str(Path(file_of(key, name, CONFIG)).parent))
    except (ValueError, TypeError, KeyError) as error:
        message = f"the adapter '{name}' cannot be read: {' '.join(str(error).split())}"
        raise ConfigError(Problem(code="no-model", path=key, message=message)) from error
    if config.task_type not in (None, "CAUSAL_LM"):
        message = f"the adapter '{name}' is for {config.task_type}; models that generate text are trained."
        raise ConfigError(Problem(code="not-served", path=key, message=message))
    if why := why_not_here(getattr(config, START, None)):
        message = f"the adapter '{name}' began by LoftQ, and does so again when it is opened. {why}"
        raise ConfigError(Problem(code="not-served", path=key, message=message))
    config.task_type, config.inference_mode = "CAUSAL_LM", False
    return config


def weights_file(key: str, name: str) -> Path:
    """Return the file of an adapter's weights; none that could run code when it is read.

    Raises:
        ConfigError: It has no such file.
    """
    return Path(file_of(key, name, SAFETENSORS_WEIGHTS_NAME))


def file_of(key: str, name: str, file: str) -> str:
    """Return the path of a file of an adapter, fetched from the hub if it is not a folder here."""
    folder = Path(name)
    if (folder / file).is_file():
        return str(folder / file)
    try:
        if folder.is_dir() or name.startswith(("/", ".")):
            raise FileNotFoundError(f"the folder has no {file}" if folder.is_dir() else "there is no such folder")
        return hf_hub_download(name, file)
    except (OSError, ValueError, EntryNotFoundError) as error:
        message = f"'{name}' holds no adapter: {' '.join(str(error).split())[:200]}."
        hint = f"It needs {CONFIG} and {SAFETENSORS_WEIGHTS_NAME}, as peft's save_pretrained writes them."
        raise ConfigError(Problem(code="no-model", path=key, message=message, hint=hint)) from error


def refuse_contradictions(config: Any, settings: Mapping[str, Any], names: Names, run: Run, adapter: str) -> None:
    """Refuse settings that are not those of the adapter.

    Raises:
        ConfigError: Names each with both values.
    """
    asked = fields_of(settings, run)
    differing = [
        field for field in asked if field not in (*WHICH, START) and _value(asked[field]) != _own(config, field)
    ]
    if any(field in asked for field in WHICH) and _adapted(config, {}, names) != _adapted(config, asked, names):
        differing += [field for field in WHICH if field in asked]
    problems = [
        Problem(
            code="rule",
            path=KEYS.get(field, f"peft.peft_kwargs.{field}"),
            message=f"is {_value(asked[field])} here, and {_own(config, field)} in the adapter '{adapter}'.",
            hint="Remove the key to go on with the adapter as it is.",
        )
        for field in differing
    ]
    method, own = run.config.peft.peft_method, config.peft_type.value.lower()
    if method is not None and method.strip().lower().replace("-", "_") != own:
        message = f"is {method} here, and {own} in the adapter '{adapter}'."
        problems.append(Problem(code="rule", path="peft.peft_method", message=message))
    if problems:
        raise ConfigError(problems)


def _own(config: Any, field: str) -> Any:
    return _value(getattr(config, field, None))


def _value(value: Any) -> Any:
    """Return a value as it is compared and shown: sets and tuples as sorted lists, enumerations as their values."""
    if isinstance(value, set | frozenset | tuple | list):
        return sorted(value, key=str)
    return value.value if isinstance(value, Enum) else value


def _adapted(config: Any, asked: Mapping[str, Any], names: Names) -> frozenset[str]:
    """Return the modules that get an adapter, as the library decides it."""
    known = {field: getattr(config, field, None) for field in (*WHICH, "modules_to_save", "layers_to_transform")}
    known |= {"layers_pattern": getattr(config, "layers_pattern", None), "target_parameters": None}
    merged = SimpleNamespace(**known | {field: asked[field] for field in WHICH if field in asked})
    if merged.target_modules == ALL_LINEAR:
        merged.target_modules = set(names.linear)
    merged.target_modules = merged.target_modules or set()
    return frozenset(name for name in names.modules if check_target_module_exists(merged, name))
