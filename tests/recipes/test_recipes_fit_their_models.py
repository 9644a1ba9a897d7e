"""What a recipe says about its model's inside is true of that architecture, as transformers builds it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from oumi_kernel.loading import load_config
from tests.conftest import ROOT
from tests.recipes.architectures import ARCHITECTURES

RECIPES = sorted((ROOT / "configs/recipes").rglob("*.yaml"))
MODEL_TYPES = {name: architecture.kind for name, architecture in ARCHITECTURES.items()} | {
    "llava-hf/llava-1.5-7b-hf": "llava"
}
"""Name on the hub -> `model_type` of its config.json."""


@cache
def architecture(kind: str) -> Any:
    """Return a two-layer model of a type without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.for_model(kind)
    text = config.get_text_config()
    text.num_hidden_layers, text.layer_types = 2, (getattr(text, "layer_types", None) or [])[:2] or None
    auto = AutoModelForImageTextToText if getattr(config, "vision_config", None) else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "configs/recipes")))
def test_the_modules_that_a_recipe_names_are_in_its_model(path: Path) -> None:
    config = load_config(path).config
    model = architecture(MODEL_TYPES[config.model.model_name])
    names = [name for name, _ in model.named_modules()]
    last = {name.rsplit(".", 1)[-1] for name in names}
    assert set(config.peft.lora_target_modules or ()) <= last
    assert set(config.model.freeze_layers) <= set(names)
    for pattern in config.peft.lora_exclude_modules or ():
        assert any(re.fullmatch(pattern, name) for name in names), pattern
    if config.fsdp.transformer_layer_cls:
        assert config.fsdp.transformer_layer_cls in {type(module).__name__ for module in model.modules()}
