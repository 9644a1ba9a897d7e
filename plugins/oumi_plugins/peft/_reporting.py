"""What an adapter covers: said in the header and the record of a run, and refused where a pattern came to nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from oumi_kernel import ConfigError, Problem
from oumi_kernel.report import Report
from oumi_plugins.peft._matching import Names, counts, patterns_of

SIZES = {
    "r": "rank",
    "lora_alpha": "alpha",
    "alpha": "alpha",
    "num_virtual_tokens": "tokens",
    "oft_block_size": "blocks of",
}
"""Field of a method's config -> what the header calls it."""


def report_on(model: Any, names: Names, asked: Mapping[str, Any]) -> Report:
    """Return what an adapter covers.

    Args:
        model: The library's model.
        names: The names of the model that is in it.
        asked: Keys of the section with patterns -> their values.

    Raises:
        ConfigError: A pattern matches only what gets no adapter.
    """
    config = model.active_peft_config
    modules = list(getattr(model, "targeted_module_names", ()))
    parameters = list(getattr(model, "targeted_parameter_names", ()))
    targets = _found(asked, "lora_target_modules", modules) or _default(config, modules)
    matches = {
        "lora_target_modules": targets,
        "lora_exclude_modules": _found(asked, "lora_exclude_modules", names.modules),
        "lora_modules_to_save": _found(asked, "lora_modules_to_save", names.modules),
        "lora_target_parameters": counts("lora_target_parameters", _parameters(config), parameters),
    }
    _refuse_what_came_to_nothing(asked, matches)
    _refuse_idle_patterns(config, [*modules, *parameters])
    _refuse_idle_biases(model, config)
    linear = [name for name in modules if name in set(names.linear)]
    shown = {key: found for key, found in matches.items() if found}
    lines = [_first_line(config)]
    if names.linear and not config.is_prompt_learning:
        lines.append(f"{len(linear):,} of {len(names.linear):,} linear layers ({len(linear) / len(names.linear):.0%})")
    lines += [f"{key}: {', '.join(f'{p} {n:,}' for p, n in found.items())}" for key, found in shown.items()]
    rows = _rows(config)
    lines += (
        [f"rows of single tokens that train: {', '.join(f'{n} {len(r):,}' for n, r in rows.items())}"] if rows else []
    )
    facts = {
        **({"peft.peft_kwargs.trainable_token_indices": rows} if rows else {}),
        "method": config.peft_type.value.lower(),
        "linear_layers": {"adapted": len(linear), "all": len(names.linear)},
        **{f"peft.{key}": found for key, found in shown.items()},
    }
    return Report(title="adapter", lines=tuple(lines), facts=facts)


def _first_line(config: Any) -> str:
    known = ((word, getattr(config, field, None)) for field, word in SIZES.items())
    sizes = [f"{word} {value}" for word, value in known if value]
    variants = [name for name in ("use_dora", "use_rslora") if getattr(config, name, False)]
    return ", ".join([config.peft_type.value, *sizes, *variants])


def _rows(config: Any) -> dict[str, list[int]]:
    """Return module -> rows of it that train by themselves."""
    rows = getattr(config, "trainable_token_indices", None) or {}
    return dict(rows) if isinstance(rows, Mapping) else {"embeddings": list(rows)}


def _found(asked: Mapping[str, Any], key: str, among: Sequence[str]) -> dict[str, int]:
    return counts(key, asked.get(key), among)


def _default(config: Any, modules: Sequence[str]) -> dict[str, int]:
    """Return the modules that the library chose for the architecture."""
    chosen = getattr(config, "target_modules", None) or ()
    return counts("lora_target_modules", chosen if isinstance(chosen, str) else sorted(chosen), modules)


def _parameters(config: Any) -> list[str]:
    """Return the patterns of parameters that are adapted: those asked for, and experts among modules asked for."""
    return sorted(getattr(config, "target_parameters", None) or ())


def _refuse_what_came_to_nothing(asked: Mapping[str, Any], matches: Mapping[str, Mapping[str, int]]) -> None:
    problems = [
        Problem(
            code="no-match",
            path=path,
            message=f"every module that '{pattern}' matches is left out.",
            hint="See lora_exclude_modules, lora_modules_to_save, model.freeze_layers and layers_to_transform.",
        )
        for key in ("lora_target_modules", "lora_target_parameters")
        for path, pattern, _ in patterns_of(key, asked.get(key))
        if not matches[key].get(pattern)
    ]
    if problems:
        raise ConfigError(problems)


def _refuse_idle_biases(model: Any, config: Any) -> None:
    """Refuse to train biases that are not there."""
    kind = getattr(config, "bias", "none")
    if kind != "none" and not any(name.endswith(".bias") and p.requires_grad for name, p in model.named_parameters()):
        where = "the model has" if kind == "all" else "the modules that are adapted have"
        message = f"is {kind}, but {where} no biases."
        raise ConfigError(Problem(code="no-match", path="peft.lora_bias", message=message, hint="Set it to none."))


def _refuse_idle_patterns(config: Any, adapted: Sequence[str]) -> None:
    """Refuse ranks and scales for modules or parameters that are not adapted, which the library only warns of."""
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field, None) or ():
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted):
                message = f"'{pattern}' matches no module that is adapted."
                path = f"peft.peft_kwargs.{field}.{pattern}"
                raise ConfigError(Problem(code="no-match", path=path, message=message))
