"""What the methods of the library have in common: hooks over its own config, model and files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from oumi_kernel import Component, ConfigError, Params, Problem, hookimpl
from oumi_kernel.adapters import adapter_of
from oumi_kernel.config import PeftParams, TrainingConfig
from oumi_kernel.config.deepspeed import ZeroStage
from oumi_kernel.contracts import Run, StepRecord
from oumi_kernel.merged import Merged
from oumi_kernel.report import Report
from oumi_plugins.peft._declared import declared, field_names

SECTION = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "lora_exclude_modules": "exclude_modules",
    "lora_target_parameters": "target_parameters",
    "lora_modules_to_save": "modules_to_save",
    "lora_bias": "bias",
    "lora_init_weights": "init_lora_weights",
}
"""Key of the section `peft` -> field of the library's config that it sets."""
MODULES = ("lora_target_modules", "lora_exclude_modules", "lora_modules_to_save")
"""Keys of the section that say which modules are meant, for every method that adapts modules."""
NOT_YET = "no component does this yet."


class OwnParams(Params):
    """A method without parameters beside the library's."""


class Method(Component):
    """A method of the library `peft`; a subclass names it."""

    requires = {"peft": "oumi-kernel[peft]"}

    module: ClassVar[str]
    """The module of its config class in the library."""

    config_class: ClassVar[str]
    """The name of that class."""

    keys: ClassVar[Collection[str]] = MODULES
    """The keys of the section `peft` that it may have a use for."""

    without: ClassVar[Collection[str]] = ()
    """Fields of the config that are no parameters: the model decides them, or nothing here can serve them."""

    not_in_parts: ClassVar[str] = ""
    """Why what it needs whole cannot be divided between processes; empty where it can."""

    whole_with: ClassVar[ZeroStage] = ZeroStage.ZERO_2
    """The highest stage of ZeRO that leaves whole what must not be divided."""

    own_params: ClassVar[type[Params]] = OwnParams
    """Parameters that the library's config does not have."""

    def __init_subclass__(cls) -> None:
        """Take the parameters from the library's config: its fields that the section does not cover."""
        super().__init_subclass__()
        known = field_names(cls.module, cls.config_class)
        cls.keys = tuple(key for key in cls.keys if SECTION[key] in known or not known)
        covered = {*cls.without, *(SECTION[key] for key in cls.keys)}
        cls.params_type = declared(cls.module, cls.config_class, without=covered, bases=(cls.own_params,))
        cls.unserved = _unserved(cls.keys) | ({"fsdp.enable_fsdp": cls.not_in_parts} if cls.not_in_parts else {})

    def __init__(self) -> None:
        self._built: Any = None
        self._first: Any = None
        self._moved: frozenset[str] = frozenset()
        self._steps_with_rate = 0
        self._is_trained = False
        self._is_done = False

    @classmethod
    def requirements(cls, config: TrainingConfig) -> Mapping[str, str]:
        """Add what quantises weights where they are."""
        return {**cls.requires, **({"bitsandbytes": "oumi-kernel[quant]"} if config.peft.q_lora else {})}

    @hookimpl
    def oumi_model_arguments(self, params: Params, run: Run) -> Mapping[str, Any]:
        """Return how the model's weights are quantised, if they are."""
        from oumi_plugins.peft._quantization import model_arguments

        self.check(run)
        return model_arguments(self.config_class, params, run)

    @hookimpl
    def oumi_apply_peft(
        self,
        params: Params,
        model: Any,
        added_tokens: Mapping[str, int],
        examples: Mapping[str, Sequence[Any]],
        run: Run,
    ) -> Any:
        """Return the library's model around the given one: the adapter trains, everything else is frozen."""
        from oumi_plugins.peft._new_tokens import NewTokens
        from oumi_plugins.peft._opening import check_opening

        new = NewTokens(model, added_tokens)
        settings = self.settings(params, run)
        if adapter_of(run) is None:
            settings = new.trained(settings, params.__struct_fields__)
        self._built = self.build(model, settings, examples, run)
        new.check(self._built.model.active_peft_config)
        check_opening(self._built.model, run.config.peft.peft_save_mode, added_tokens)
        if run.config.peft.q_lora:
            from oumi_plugins.peft._quantization import with_quantised

            report = with_quantised(self._built.report, self._built.model)
            self._built = msgspec.structs.replace(self._built, report=report)
        return self._built.model

    @hookimpl
    def oumi_merge_adapter(self, model: Any, adapter: Path, tokenizer: Any) -> tuple[Any, Merged]:
        """Return a base model with a saved adapter merged into its weights, and what a check of it found."""
        from oumi_plugins.peft._merging import merge_adapter

        return merge_adapter(model, adapter, tokenizer)

    @hookimpl
    def oumi_report(self) -> Report | None:
        """Say what is adapted."""
        return self._built.report if self._built else None

    @hookimpl
    def oumi_save_model(
        self, model: Any, state: Callable[[], Mapping[str, Any] | None], tokenizer: Any, directory: Path, run: Run
    ) -> bool:
        """Write the adapter as the library does, with tokenizer and chat template, and read it back to check."""
        from oumi_plugins.peft._saving import Saved, save_adapter

        weights = state()
        if run.world.is_main and weights is not None:
            moved = self._moved if self._is_trained else frozenset[str]()
            built = self._built
            shapes = self._shapes(weights)
            saved = Saved(model=model, weights=weights, shapes=shapes, initial=built.initial, moved=moved)
            save_adapter(saved, tokenizer, directory)
        return True

    @hookimpl
    def oumi_load_weights(self, model: Any, directory: Path) -> bool:
        """Read the adapter's weights back into the model, every one of them."""
        from oumi_plugins.peft._saving import load_adapter

        load_adapter(model, directory / "adapter_model.safetensors", self._built.initial)
        return True

    @hookimpl
    def oumi_train_start(self, run: Run, step: int) -> None:
        """Watch the gradients of the first step, where there are some: the first process is dealt an example first."""
        from oumi_plugins.peft._gradients import FirstGradients

        if run.world.is_main:
            self._first = FirstGradients(self._built.model, compiled=run.config.training.compile)

    @hookimpl
    def oumi_step_end(self, record: StepRecord) -> None:
        """Look once whether every adapter learns."""
        self._steps_with_rate += record.learning_rate > 0
        self._is_trained = self._steps_with_rate > record.skipped
        if self._first is not None:
            first, self._first = self._first, None
            self._moved = first.check()

    @hookimpl
    def oumi_train_end(self) -> None:
        """Know that what is saved next is not gone on from."""
        self._is_done = True

    def build(self, model: Any, settings: Mapping[str, Any], examples: Mapping[str, Sequence[Any]], run: Run) -> Any:
        """Return the model with its adapter (see `oumi_plugins.peft._building.build`)."""
        from oumi_plugins.peft._building import build

        return build(model, self.config_class, settings, examples, run)

    def check(self, run: Run) -> None:
        """Refuse what the method cannot do, before the model is read.

        Raises:
            ConfigError: Weights would be divided that must be whole.
        """
        deepspeed = run.config.deepspeed
        stage, highest = deepspeed.zero_stage, self.whole_with
        if self.not_in_parts and deepspeed.enable_deepspeed and stage.value > highest.value:
            message = f"{type(self).__name__} does not go with {stage.name}: {self.not_in_parts}"
            hint = f"Set {highest.name}."
            raise ConfigError(Problem(code="not-served", path="deepspeed.zero_stage", message=message, hint=hint))

    def settings(self, params: Params, run: Run) -> dict[str, Any]:
        """Return the fields of the config that the configuration changes."""
        section, own = run.config.peft, self.own_params.__struct_fields__
        fields = {SECTION[key]: (getattr(section, key), getattr(PeftParams(), key)) for key in self.keys}
        fields |= {
            field.name: (getattr(params, field.name), field.default_factory() if _is_made(field) else field.default)
            for field in msgspec.structs.fields(params)
            if field.name not in own
        }
        return {name: value for name, (value, default) in fields.items() if value != default}

    def _shapes(self, weights: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of everything that must be saved."""
        return self._built.shapes


def _is_made(field: msgspec.structs.FieldInfo) -> bool:
    return field.default_factory is not msgspec.NODEFAULT


def _unserved(keys: Collection[str]) -> dict[str, str]:
    """Return the keys of the section that a method cannot serve, with what to do instead."""
    table = {
        f"peft.{key}": "this method takes its parameters from peft.peft_kwargs." for key in SECTION if key not in keys
    }
    task = "models that generate text are trained; no trainer does other tasks yet."
    return table | {"peft.lora_task_type": task}
