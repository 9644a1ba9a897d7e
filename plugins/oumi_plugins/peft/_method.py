"""What the methods of the library have in common: hooks over its own config, model and files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.config import PeftParams
from oumi_kernel.contracts import Run
from oumi_kernel.merged import Merged
from oumi_plugins.peft._declared import declared

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


def parameters(
    module: str,
    name: str,
    keys: Collection[str],
    *,
    without: Collection[str] = (),
    bases: tuple[type[Params], ...] = (),
) -> type[Params]:
    """Return the struct of a method's own parameters: the fields of its config that the section does not cover.

    Args:
        module: The module of its config class.
        name: The name of its config class.
        keys: Keys of the section that it has a use for.
        without: Further fields that are no parameters.
        bases: Structs with parameters that the library's config does not have.
    """
    return declared(module, name, without={*without, *(SECTION[key] for key in keys)}, bases=bases or (Params,))


def unserved(keys: Collection[str], own: str) -> dict[str, str]:
    """Return the keys of the section that a method cannot serve, with what to do instead."""
    table = {
        f"peft.{key}": f"it is for LoRA; {own} takes its parameters from peft.peft_kwargs."
        for key in SECTION
        if key not in keys
    }
    quantisation = (
        key for key in PeftParams.__struct_fields__ if key.startswith(("q_lora", "bnb_", "llm_", "use_bnb"))
    )
    table |= dict.fromkeys((f"peft.{key}" for key in quantisation), NOT_YET)
    task = "models that generate text are trained; no trainer does other tasks yet."
    return table | {"peft.lora_task_type": task}


class Method(Component):
    """A method of the library `peft`; a subclass names it."""

    requires = {"peft": "oumi-kernel[peft]"}

    config_class: ClassVar[str]
    """The name of its config class in the library."""

    keys: ClassVar[Collection[str]] = MODULES
    """The keys of the section `peft` that it has a use for."""

    own_parameters: ClassVar[Collection[str]] = ()
    """Parameters that are not the library's."""

    @hookimpl
    def oumi_apply_peft(self, params: Params, model: Any, added_tokens: Mapping[str, int], run: Run) -> Any:
        """Return the library's model around the given one: the adapter trains, everything else is frozen."""
        from oumi_plugins.peft._adapter import adapted
        from oumi_plugins.peft._new_tokens import with_new_tokens
        from oumi_plugins.peft._opening import check_opening

        settings = with_new_tokens(self.settings(params, run), model, added_tokens, params.__struct_fields__)
        model = adapted(model, self.config_class, settings, run)
        check_opening(model, run.config.peft.peft_save_mode, added_tokens)
        return model

    @hookimpl
    def oumi_merge_adapter(self, model: Any, adapter: Path, tokenizer: Any) -> tuple[Any, Merged]:
        """Return a base model with a saved adapter merged into its weights, and what a check of it found."""
        from oumi_plugins.peft._merging import merge_adapter

        return merge_adapter(model, adapter, tokenizer)

    @hookimpl
    def oumi_save_model(
        self, model: Any, state: Callable[[], Mapping[str, Any] | None], tokenizer: Any, directory: Path, run: Run
    ) -> bool:
        """Write the adapter as the library does, with tokenizer and chat template, and read it back to check."""
        from oumi_plugins.peft._saving import save_adapter

        weights = state()
        if run.world.is_main and weights is not None:
            save_adapter(model, weights, tokenizer, directory)
        return True

    @hookimpl
    def oumi_load_weights(self, model: Any, directory: Path) -> bool:
        """Read the adapter's weights back into the model, every one of them."""
        from oumi_plugins.peft._saving import load_adapter

        load_adapter(model, directory)
        return True

    def settings(self, params: Params, run: Run) -> dict[str, Any]:
        """Return the fields of the config that the configuration changes."""
        section, default = run.config.peft, PeftParams()
        changed = {
            SECTION[key]: getattr(section, key) for key in self.keys if getattr(section, key) != getattr(default, key)
        }
        return changed | {
            name: getattr(params, name)
            for name in params.__struct_fields__
            if name not in self.own_parameters and getattr(params, name) != getattr(type(params)(), name)
        }
