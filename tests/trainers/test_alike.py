"""A micro-batch that is simulated with some of the layers that are alike needs what it needs with all of them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers

from oumi_kernel.config import TrainingParams
from oumi_kernel.rehearsal import Division
from oumi_plugins.trainers import _alike, _simulation
from oumi_plugins.trainers._forward import Forward
from oumi_plugins.trainers._simulation import Usage, simulate
from oumi_plugins.trainers.sft import SftParams
from tests.conftest import few_of
from tests.trainers.test_forward import MODELS, SHAPE, padded_batch, sequences

LAYERS = 12
WIDTH = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
DEEP = {"num_hidden_layers": LAYERS} | WIDTH
LENGTHS = (300, 40, 170)
AGAIN = {"enable_gradient_checkpointing": True}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}, {}),
    "bfloat16": ({"mixed_precision_dtype": "bf16"}, {}, {}),
    "accumulated": ({"gradient_accumulation_steps": 2}, {}, {}),
    "recomputed": (AGAIN, {}, {}),
    "recomputed in bfloat16": (AGAIN | {"mixed_precision_dtype": "bf16"}, {}, {}),
    "recomputed, reentrant": (AGAIN | {"gradient_checkpointing_kwargs": {"use_reentrant": True}}, {}, {}),
    "selective": (AGAIN, {"gradient_checkpointing_mode": "selective"}, {}),
    "every third": (AGAIN, {"gradient_checkpointing_every": 3}, {}),
    "stepped in the backward pass": ({"max_grad_norm": None}, {"optimizer_in_backward": True}, {}),
    "gradients divided": ({}, {}, {"gradients": 2, "weights": 2, "optimizer_state": 2}),
    "gradients divided and accumulated": ({"gradient_accumulation_steps": 2}, {}, {"gradients": 4}),
}
COMPUTED = {"gemma3": 4 + 2, "smollm3": 4 + 3}
"""Of 12 layers; 2 of these have attention to all tokens, or 3 no positions."""
FROZEN = {"the first": range(6), "the last": range(6, LAYERS), "some": (0, 3, 4, 5, 6, 7, 8, 11)}
FEW = ["recomputed in bfloat16", "every third", "gradients divided and accumulated"]


def skeleton(name: str) -> tuple[Any, Forward]:
    """Return a deep model without weights, and how a small one of its kind computes losses."""
    family, settings = MODELS[name]
    kind = getattr(transformers, f"{family}Config")
    asked = Forward(transformers.AutoModelForCausalLM.from_config(kind(**SHAPE | settings)), ignore=-100)
    asked.choose(None, nullcontext)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(kind(**SHAPE | settings | DEEP)), asked


def compare(model: Any, asked: Forward, training: Any = None, params: Any = None, division: Any = None) -> Usage | str:
    batch = padded_batch(sequences(LENGTHS))
    settings = TrainingParams(**training or {}), SftParams(**params or {}), asked, Division(**division or {})
    found = simulate(model, batch, *settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_simulation, "compute_some", lambda *_: None)
        assert simulate(model, batch, *settings) == found
    return found


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keep how many layers of each stack compute."""
    counts: list[int] = []
    forward = _alike.Layer.forward

    def counted(layer: _alike.Layer, *given: Any, **named: Any) -> Any:
        counts.append(layer.computes)
        return forward(layer, *given, **named)

    monkeypatch.setattr(_alike.Layer, "forward", counted)
    return counts


@pytest.mark.parametrize("name", few_of(["gemma3", "smollm3", "mixtral", "llama", "cohere"], (*COMPUTED, "mixtral")))
def test_it_needs_the_same_whatever_the_architecture(name: str, computed: list[int]) -> None:
    model, asked = skeleton(name)
    if name == "mixtral":
        model.to(torch.bfloat16)  # torch has a meta kernel of its experts' products for this format alone
    assert isinstance(compare(model, asked), Usage)
    assert len(computed) == LAYERS
    assert sum(computed) == COMPUTED.get(name, 2 * _alike.COMPUTED)


@pytest.mark.parametrize("way", few_of(WAYS, FEW))
def test_it_needs_the_same_whatever_the_settings(way: str, computed: list[int]) -> None:
    assert isinstance(compare(*skeleton("gemma3"), *WAYS[way]), Usage)
    assert 0 < sum(computed) < len(computed)


@pytest.mark.parametrize("which", FROZEN)
def test_it_needs_the_same_where_layers_are_frozen(which: str, computed: list[int]) -> None:
    model, asked = skeleton("llama")
    model.get_input_embeddings().requires_grad_(False)
    for place in FROZEN[which]:
        model.model.layers[place].requires_grad_(False)
    assert isinstance(compare(model, asked), Usage)
    assert 0 < sum(computed) < len(computed)


@pytest.mark.parametrize("again", [{}, AGAIN], ids=["kept", "recomputed"])
@pytest.mark.parametrize("where", [None, [2, 3, 4, 5, 6, 9]], ids=["everywhere", "some layers"])
def test_it_needs_the_same_with_an_adapter(again: dict[str, Any], where: list[int] | None, computed: list[int]) -> None:
    peft = pytest.importorskip("peft")
    model, asked = skeleton("llama")
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.1, layers_to_transform=where)
    adapted = peft.get_peft_model(model, settings)
    assert isinstance(compare(adapted, asked, again), Usage)
    assert 0 < sum(computed) < len(computed)


def test_where_some_cannot_stand_for_others_all_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    def says_more(layer: Any, *given: Any, **named: Any) -> Any:
        raise TypeError("it returns more than hidden states")

    monkeypatch.setattr(_alike.Layer, "forward", says_more)
    assert isinstance(compare(*skeleton("llama")), Usage)
