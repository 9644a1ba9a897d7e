"""Whether `AutoModelForCausalLM.from_pretrained` opens a folder that holds an adapter beside its model."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers.utils import logging as library_logging

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config.peft import PeftSaveMode
from oumi_plugins.peft._adapter import quiet

_log = logging.getLogger("oumi_plugins.peft.opening")


def check_opening(adapted: Any, mode: PeftSaveMode, added: Mapping[str, int]) -> None:
    """Refuse to save base and adapter in one folder that would open as something else; warn of an adapter alone.

    Args:
        adapted: The model with its adapter, before training.
        mode: What is saved at the end.
        added: Token -> row of tokens that were added.

    Raises:
        ConfigError: Base and adapter are to be saved, and transformers would not load this adapter.
    """
    if mode is PeftSaveMode.MERGED:
        return
    reason = why_it_does_not_open(adapted)
    if mode is PeftSaveMode.ADAPTER_AND_BASE_MODEL and reason:
        message = f"the folder would not open as the trained model: transformers cannot load this adapter: {reason}."
        hint = "adapter_only opens with peft (AutoPeftModelForCausalLM); merged opens with both."
        raise ConfigError(Problem(code="not-served", path="peft.peft_save_mode", message=message, hint=hint))
    reason = reason or ("it does not add rows for tokens" if added and mode is PeftSaveMode.ADAPTER_ONLY else "")
    if reason:
        _log.warning(
            "the adapter opens with AutoPeftModelForCausalLM alone, not with AutoModelForCausalLM of transformers: %s",
            reason,
        )


def why_it_does_not_open(adapted: Any) -> str:
    """Return why transformers would not load the adapter of a model, or only a part of it; empty if it does.

    It reads adapters with code of its own, which does not know all of the library's methods, and only reports what it
    did not find. This is asked with the adapter's names and shapes, before anything is trained.
    """
    base, config = adapted.get_base_model(), adapted.active_peft_config
    if config.is_prompt_learning:
        return "it loads no prompts"
    with warnings.catch_warnings(category=UserWarning, action="ignore"):
        names = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        weights = {name: torch.zeros(tensor.shape, device="cpu") for name, tensor in names.items()}
        save_file(weights, Path(folder) / SAFETENSORS_WEIGHTS_NAME)
        shown = copy.copy(config)
        if hasattr(shown, "init_lora_weights"):
            shown.init_lora_weights = True  # others look at weights, and there are none
        shown.save_pretrained(folder)
        empty = type(base)(base.config)
        try:
            with quiet(), _silent():
                report = empty.load_adapter(folder)
        except (ValueError, NotImplementedError, TypeError, RuntimeError, IndexError) as error:
            return " ".join(str(error).split())
    unknown = sorted(report.unexpected_keys)
    return f"it does not find the place of {len(unknown)} weights, among them '{unknown[0]}'" if unknown else ""


@contextmanager
def _silent() -> Generator[None]:
    """Keep the library's bars and reports off the terminal."""
    level, had_bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity(library_logging.CRITICAL)
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(level)
        if had_bars:
            library_logging.enable_progress_bar()
