"""Prompt tuning."""

from __future__ import annotations

from oumi_plugins.peft._method import Method


class PromptTuning(Method):
    """Prompt tuning (arXiv 2104.08691): vectors before the first token, in the place of words."""

    module = "peft.tuners.prompt_tuning.config"
    config_class = "PromptTuningConfig"
    keys = ()
    without = "token_dim num_transformer_submodules num_attention_heads num_layers modules_to_save".split()
    not_in_parts = "the library reads its vectors as a whole when they are saved; LoRA does with parts."
