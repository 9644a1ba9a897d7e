"""A small model of an architecture answers as a large one would, whether it keeps examples apart."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import transformers

from oumi_plugins.trainers._forward import Forward
from oumi_plugins.trainers._small import LARGEST, NotSmall, small_model
from tests.trainers.test_forward import build

CPU = torch.device("cpu")
CASES = [
    ("llama", None),
    ("gpt2", "eager"),
    ("phi3", None),
    ("mixtral", None),
    ("gemma3", "eager"),
    ("gpt_oss", None),
    ("gpt_oss", "eager"),
]
"""Architecture and attention; the configurations are the library's own, of billions of parameters."""


def skeleton(
    kind: str, attention: str | None = None, dtype: torch.dtype = torch.float32
) -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.for_model({"gemma3": "gemma3_text"}.get(kind, kind))
    options = {} if attention is None else {"attn_implementation": attention}
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, **options)


def is_flat(model: torch.nn.Module, attention: str | None) -> bool:
    forward = Forward(model, ignore=-100)
    forward.choose(attention, nullcontext)
    return forward.is_flat


@pytest.mark.parametrize(("kind", "attention"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_asked_as_a_model_of_strong_weights_is(kind: str, attention: str | None, dtype: torch.dtype) -> None:
    expected = build(kind)
    if attention is not None:
        expected.set_attn_implementation(attention)
    large = skeleton(kind, attention, dtype)
    small = small_model(large, CPU)
    assert type(small) is type(large)
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert sum(parameter.numel() for parameter in small.parameters()) <= LARGEST
    assert small.config._attn_implementation == large.config._attn_implementation
    assert is_flat(small, attention) is is_flat(expected, attention)


def test_every_kind_of_layer_is_there() -> None:
    small = small_model(skeleton("gemma3"), CPU)
    assert small.config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]


def test_random_numbers_of_others_are_left_as_they_were() -> None:
    before = torch.get_rng_state()
    small_model(skeleton("llama"), CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_put_around_a_model_is_looked_through() -> None:
    assert type(small_model(torch.nn.Sequential(skeleton("llama")), CPU)).__name__ == "LlamaForCausalLM"


def test_an_architecture_without_a_small_form_is_said() -> None:
    with pytest.raises(NotSmall, match=r"BambaForCausalLM cannot be built in small \(shape .* is invalid"):
        small_model(skeleton("bamba"), CPU)
    with pytest.raises(NotSmall, match="Linear is no model of transformers"):
        small_model(torch.nn.Linear(1, 1), CPU)
