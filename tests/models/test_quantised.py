"""Quantised models: what is quantised, how they look without weights, and what is refused before they are loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from oumi_kernel import ConfigError
from oumi_kernel.config import PeftParams
from oumi_kernel.contracts import Run
from oumi_plugins.trainers._packed import constants_bytes, elements
from tests.models.conftest import TINY, Load, Loader

FOUR = {"load_in_4bit": True}
NESTED = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 512}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
OTHERS = {
    "biases": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, **HEADS, tie_word_embeddings=False)),
    "transposed": lambda: GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=512, n_positions=64)),
    "experts": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SMALL, **HEADS, head_dim=16, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2)
    ),
}


def both(load: Load, settings: dict[str, Any], **model: Any) -> tuple[Any, Any]:
    """Return the loaded model, and the one without weights."""
    loader = load(**model)
    tokenizer, arguments = loader.tokenizer(), {"quantization_config": BitsAndBytesConfig(**settings)}
    skeleton = loader.component.oumi_build_skeleton(
        params=loader.params, tokenizer=tokenizer, arguments=arguments, run=loader.run
    )
    return loader.model(tokenizer, **arguments), skeleton


def appearance(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a model saves, and its parameters; the length of a record of settings depends on their values."""
    saved = {name: (t.shape, t.dtype) for name, t in model.state_dict().items() if ".quant_state." not in name}
    kinds = {n: (p.shape, p.dtype, type(p).__name__, p.requires_grad) for n, p in model.named_parameters()}
    return saved, kinds


@pytest.mark.parametrize(
    "settings",
    [FOUR, NESTED, FOUR | {"bnb_4bit_quant_storage": "bfloat16"}, {"load_in_8bit": True}],
    ids=["fp4", "nested", "stored in bfloat16", "8 bits"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_without_weights_looks_like_the_loaded_one(load: Load, settings: dict[str, Any], dtype: str) -> None:
    model, skeleton = both(load, settings, torch_dtype_str=dtype)
    assert appearance(skeleton) == appearance(model)
    assert any("int8" in str(dtype) for _, dtype in appearance(model)[0].values()) is (
        "bnb_4bit_quant_storage" not in settings
    )
    assert all(p.is_meta for p in skeleton.parameters())
    assert skeleton.lm_head.weight is skeleton.model.embed_tokens.weight
    assert type(model.lm_head) is torch.nn.Linear


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_look_the_same_without_weights_too(tmp_path: Path, load: Load, kind: str) -> None:
    folder = tmp_path / "model"
    OTHERS[kind]().save_pretrained(folder)
    model, skeleton = both(load, NESTED, model_name=str(folder), tokenizer_name=str(TINY))
    assert appearance(skeleton) == appearance(model)


def closed_form(numbers: int, nested: bool) -> int:
    """Return the bytes of a 4-bit weight: half a byte a number, and a constant for each 64 of them."""
    blocks, table = math.ceil(numbers / 64), 16 * 4
    if not nested:
        return numbers // 2 + 4 * blocks + table
    return numbers // 2 + blocks + 4 * math.ceil(blocks / 256) + table + 256 * 4


@pytest.mark.parametrize("settings", [FOUR, NESTED], ids=["plain", "nested"])
def test_a_4_bit_weight_takes_half_a_byte_a_number_and_its_constants(load: Load, settings: dict[str, Any]) -> None:
    _, skeleton = both(load, settings)
    layers = [module for module in skeleton.modules() if type(module).__name__ == "Linear4bit"]
    assert len(layers) == 14
    numbers = [layer.in_features * layer.out_features for layer in layers]
    assert sorted(elements(skeleton).values()) == sorted(numbers)
    expected = sum(closed_form(count, settings is NESTED) for count in numbers)
    packed = sum(layer.weight.numel() for layer in layers)
    assert packed == sum(numbers) // 2
    records = 200 * len(layers)  # settings in words, which the file has and memory does not
    assert expected <= packed + constants_bytes(skeleton) <= expected + records


def test_evaluating_leaves_a_4_bit_model_as_it_was(load: Load, tmp_path: Path) -> None:
    """On CPUs with bfloat16 instructions bitsandbytes packs weights anew, and no gradient goes through them then."""
    folder = tmp_path / "model"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 512}  # multiples of 32
    Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=2)).save_pretrained(folder)
    model, _ = both(load, NESTED, model_name=str(folder), tokenizer_name=str(TINY))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(1, 30)[None]

    def gradient() -> torch.Tensor:
        model.train().zero_grad()
        model(ids, labels=ids).loss.backward()
        return model.model.embed_tokens.weight.grad.clone()

    expected = gradient()
    with torch.no_grad():
        model.eval()(ids)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(gradient(), expected)


def asked(loader: Loader, **peft: Any) -> Loader:
    config = msgspec.structs.replace(loader.run.config, peft=PeftParams(q_lora=True, **peft))
    loader.run = Run(config=config, folder=loader.run.folder)
    return loader


@pytest.mark.parametrize(
    ("peft", "message"),
    [
        (
            {"llm_int8_skip_modules": ["o_proj", "gate_porj"]},
            r"skip_modules\[1\]: 'gate_porj' matches no linear layer of LlamaForCausalLM.*Did you mean 'gate_proj'\?",
        ),
        ({"llm_int8_skip_modules": ["(["]}, r"skip_modules\[0\]: '\(\[' is no pattern"),
        ({"llm_int8_skip_modules": ["proj"]}, "peft.q_lora: LlamaForCausalLM has no linear layer left to quantise"),
        (
            {"lora_modules_to_save": ["norm", "o_proj"]},
            r"to_save\[1\]: 'o_proj' names model.layers.0.self_attn.o_proj, .*Add 'o_proj' to peft.llm_int8_skip",
        ),
        ({"lora_modules_to_save": ["mlp"]}, r"to_save\[0\]: 'mlp' names .*gate_proj, .*Add '\.\*mlp' to peft.llm_int8"),
        (
            {"lora_target_parameters": ["q_proj.weight"]},
            r"target_parameters\[0\]: 'q_proj.weight' names .*q_proj, .*Add 'q_proj' to peft.llm_int8_skip_modules",
        ),
    ],
)
def test_what_cannot_be_quantised_as_asked_is_refused_before_data_is_read(
    load: Load, peft: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        asked(load(), **peft).tokenizer()


@pytest.mark.parametrize(
    "peft",
    [
        {"llm_int8_skip_modules": [r".*mlp"], "lora_modules_to_save": ["mlp"]},
        {"llm_int8_skip_modules": ["o_proj"], "lora_modules_to_save": ["o_proj", "lm_head", "embed_tokens", "norm"]},
        {"llm_int8_skip_modules": ["model.layers.1.*", "q_proj"], "lora_target_parameters": ["q_proj.weight"]},
    ],
)
def test_the_way_out_that_a_refusal_names_works(load: Load, peft: dict[str, Any]) -> None:
    asked(load(), **peft).tokenizer()


def test_weights_that_do_not_fit_their_storage_are_refused(tmp_path: Path, load: Load) -> None:
    folder = tmp_path / "model"
    sizes = {"hidden_size": 6, "intermediate_size": 6, "num_hidden_layers": 1, "vocab_size": 512}
    Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=1, num_key_value_heads=1)).save_pretrained(folder)
    loader = load(model_name=str(folder), tokenizer_name=str(TINY))
    with pytest.raises(
        ConfigError, match=r"4-bit weights of .*, \(6, 6\), are no whole number of float64. Set it to uint"
    ):
        asked(loader, bnb_4bit_quant_storage="float64").tokenizer()
    asked(loader, bnb_4bit_quant_storage="int8").tokenizer()


def test_experts_that_are_stored_as_one_tensor_are_said_to_stay_as_they_are(
    tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    OTHERS["experts"]().save_pretrained(folder)
    asked(load(model_name=str(folder), tokenizer_name=str(TINY))).tokenizer()
    assert "peft.q_lora: only 18 % of the weights are quantised" in caplog.text
    caplog.clear()
    asked(load()).tokenizer()
    assert "are quantised" not in caplog.text


def test_other_ways_of_quantisation_are_refused_by_their_names(tmp_path: Path, load: Load) -> None:
    model = OTHERS["biases"]()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    model.config.save_pretrained(tmp_path / "model")
    loader = load(model_name=str(tmp_path / "model"), tokenizer_name=str(TINY))
    for start in (loader, asked(load(model_name=str(tmp_path / "model"), tokenizer_name=str(TINY)))):
        with pytest.raises(ConfigError, match=r"saved quantised \(gptq\).*Name the model in its original precision"):
            start.tokenizer()


def test_a_model_that_is_not_quantised_is_loaded_as_before(load: Load) -> None:
    model = load().model()
    assert {type(module) for module in model.modules() if isinstance(module, torch.nn.Linear)} == {torch.nn.Linear}
    assert model.num_parameters() == AutoModelForCausalLM.from_pretrained(TINY).num_parameters()
