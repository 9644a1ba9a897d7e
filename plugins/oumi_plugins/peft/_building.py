"""From a configuration to the model with its adapter: a new one, or one to go on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch

from oumi_kernel import ConfigError, Problem
from oumi_kernel.adapters import adapter_of
from oumi_kernel.contracts import Run
from oumi_kernel.report import Report
from oumi_plugins.peft._adapter import config_of, put_in
from oumi_plugins.peft._continuing import own_config, refuse_contradictions, weights_file
from oumi_plugins.peft._conversion import changes_the_model, check_start, without_start
from oumi_plugins.peft._matching import MATCHERS, check_patterns, names_of
from oumi_plugins.peft._method import SECTION
from oumi_plugins.peft._reporting import report_on
from oumi_plugins.peft._saving import adapter_state, load_adapter, shapes_of

Examples = Mapping[str, Sequence[Any]]


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """A model with its adapter.

    Attributes:
        model: The library's model.
        report: What it adapts.
        shapes: Name -> shape of the whole adapter, under the names of files.
        initial: The adapter as it began, where that changed the model; None where it did not.
    """

    model: Any
    report: Report
    shapes: Mapping[str, tuple[int, ...]]
    initial: Mapping[str, torch.Tensor] | None = None


def build(model: Any, config_class: str, settings: Mapping[str, Any], examples: Examples, run: Run) -> Built:
    """Return the model with its adapter.

    Args:
        model: The model; on the device `meta` for one without weights.
        config_class: The config class of the method.
        settings: Fields of it that the configuration changes.
        examples: Split -> prepared examples.
        run: The run.

    Raises:
        ConfigError: A pattern matches nothing, or the library refuses a setting.
    """
    if not run.config.model.load_pretrained_weights:
        message = "an adapter is saved without its model, and random weights cannot be had again."
        hint = "Set load_pretrained_weights: true, or train the whole model (training.use_peft: false)."
        path = "model.load_pretrained_weights"
        raise ConfigError(Problem(code="not-served", path=path, message=message, hint=hint))
    adapter = adapter_of(run)
    if adapter is not None:
        return _continued(model, settings, adapter, run)
    names = names_of(model)
    asked = {key: getattr(run.config.peft, key) for key in MATCHERS if SECTION[key] in settings}
    check_patterns(names, asked)
    config = config_of(config_class, settings, run)
    is_changed = changes_the_model(config)
    adapted = put_in(model, config, examples, run)
    built = _built(adapted, report_on(adapted, names, asked), is_changed=is_changed)
    if not is_changed or _has_no_weights(model):
        return built
    check_start(adapted, config)
    initial = {name: tensor.clone() for name, tensor in adapter_state(adapted, adapted.state_dict()).items()}
    return msgspec.structs.replace(built, initial=initial)


def _continued(model: Any, settings: Mapping[str, Any], adapter: tuple[str, str], run: Run) -> Built:
    """Return the model with an adapter that was trained before, its weights read."""
    key, name = adapter
    config, names = own_config(key, name), names_of(model)
    refuse_contradictions(config, settings, names, run, name)
    without_weights = _has_no_weights(model)
    adapted = put_in(model, config, {}, run)
    if not without_weights:
        load_adapter(adapted, weights_file(key, name))
    report = report_on(adapted, names, {})
    lines = (f"goes on with {name}", *report.lines)
    facts = {**report.facts, "goes_on_with": name}
    return _built(adapted, msgspec.structs.replace(report, lines=lines, facts=facts))


def _built(model: Any, report: Report, *, is_changed: bool = False) -> Built:
    if _has_no_weights(model) and model.active_peft_config.is_prompt_learning:  # the library copies its vectors
        state = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    else:
        state = adapter_state(model, model.state_dict())
    outline = {name: tensor.to("meta") for name, tensor in state.items()}
    saved = without_start(outline, outline) if is_changed else outline
    facts = {**report.facts, "saved_bytes": sum(tensor.nbytes for tensor in saved.values())}
    return Built(model=model, report=msgspec.structs.replace(report, facts=facts), shapes=shapes_of(state))


def _has_no_weights(model: Any) -> bool:
    return next(model.parameters()).is_meta
