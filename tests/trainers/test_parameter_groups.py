"""What decays and what does not, on real architectures and adapters, against lists of names written down by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from oumi_plugins.trainers._parameters import parameter_groups

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def model(kind: str, **config: Any) -> Any:
    import transformers

    settings = (SMALL if "n_embd" not in config else {}) | config
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings))


def kinds(model: nn.Module) -> dict[str, set[str]]:
    """Return kind -> names without numbers of layers and the model's prefix; checks what holds for every model."""
    groups = parameter_groups(model, 0.1)
    assert {group["kind"]: group["weight_decay"] for group in groups}.items() <= {
        "weights": 0.1,
        "head": 0.1,
        "rest": 0.0,
    }.items()
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, one in model.named_parameters() if one.requires_grad)
    return {g["kind"]: {re.sub(r"^.*\.(\d+\.|(?=lm_head))", "", name) for name, _ in g["params"]} for g in groups}


ATTENTION = {f"self_attn.{name}_proj.weight" for name in "qkvo"}
MLP = {f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight"}
EMBED = {"model.embed_tokens.weight"}
QK = {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}


def test_llama_with_biases_and_a_head_of_its_own() -> None:
    found = kinds(model("llama", tie_word_embeddings=False, attention_bias=True))
    biases = {f"self_attn.{name}_proj.bias" for name in "qkvo"}
    assert found == {"weights": ATTENTION | MLP, "head": {"lm_head.weight"}, "rest": NORMS | EMBED | biases}


def test_a_head_that_is_the_embedding_does_not_decay() -> None:
    found = kinds(model("llama", tie_word_embeddings=True))
    assert found == {"weights": ATTENTION | MLP, "rest": NORMS | EMBED}


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_norms_of_queries_and_keys_do_not_decay(kind: str) -> None:
    found = kinds(model(kind))
    assert found["weights"] == ATTENTION | MLP
    assert found["rest"] >= NORMS | EMBED | QK
    assert all("norm" in name or "embed" in name for name in found["rest"])


def test_gpt2_with_its_own_kind_of_linear_layer_and_positions() -> None:
    found = kinds(model("gpt2", n_embd=32, n_layer=1, n_head=4, vocab_size=64))
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert found["weights"] == {f"{name}.weight" for name in layers}
    norms = {f"{name}.{part}" for name in ("ln_1", "ln_2", "transformer.ln_f") for part in ("weight", "bias")}
    embeddings = {"transformer.wte.weight", "transformer.wpe.weight"}
    assert found["rest"] == norms | embeddings | {f"{name}.bias" for name in layers}


def test_experts_of_three_dimensions_decay_and_so_does_their_router() -> None:
    moe = model("qwen3_moe", **EXPERTS, tie_word_embeddings=False)
    found = kinds(moe)
    experts = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    assert found["weights"] == ATTENTION | experts | {"mlp.gate.weight"}
    assert dict(moe.named_parameters())["model.layers.0.mlp.experts.down_proj"].ndim == 3


def test_biases_of_experts_are_matrices_and_do_not_decay_nor_do_sinks() -> None:
    found = kinds(model("gpt_oss", num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False))
    assert found["weights"] == ATTENTION | {
        "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj",
        "mlp.router.weight",
    }
    assert {"mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias", "self_attn.sinks"} < found["rest"]


def test_a_gate_of_one_output_decays_as_other_linear_layers_do() -> None:
    found = kinds(model("qwen2_moe", **EXPERTS, shared_expert_intermediate_size=16))
    assert "mlp.shared_expert_gate.weight" in found["weights"]


def test_what_a_state_space_layer_adds_to_its_matrices_does_not_decay() -> None:
    found = kinds(model("mamba2", hidden_size=32, num_heads=8, head_dim=8, state_size=4, n_groups=1))
    assert {"mixer.in_proj.weight", "mixer.out_proj.weight", "mixer.conv1d.weight"} <= found["weights"]
    assert {"mixer.A_log", "mixer.D", "mixer.dt_bias", "mixer.norm.weight"} <= found["rest"]


def test_frozen_parameters_are_in_no_group() -> None:
    llama = model("llama")
    llama.model.layers[0].mlp.requires_grad_(False)
    assert kinds(llama)["weights"] == ATTENTION


def adapted(**config: Any) -> Any:
    peft = pytest.importorskip("peft")
    kind: Callable[..., Any] = getattr(peft, config.pop("kind", "LoraConfig"))
    return peft.get_peft_model(model("llama", tie_word_embeddings=False), kind(task_type="CAUSAL_LM", **config))


@pytest.mark.parametrize("rank", [1, 4])
def test_adapters_of_layers_decay_whatever_their_rank(rank: int) -> None:
    found = kinds(adapted(r=rank, target_modules=["q_proj"]))
    assert found == {"weights": {f"self_attn.q_proj.lora_{side}.default.weight" for side in "AB"}}


def test_magnitudes_of_dora_do_not_decay() -> None:
    found = kinds(adapted(r=4, target_modules=["q_proj"], use_dora=True))
    assert found["rest"] == {"self_attn.q_proj.lora_magnitude_vector.default.weight"}


def test_scales_of_ia3_do_not_decay() -> None:
    found = kinds(adapted(kind="IA3Config", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]))
    assert found == {"rest": {"self_attn.k_proj.ia3_l.default", "mlp.down_proj.ia3_l.default"}}


def test_adapters_and_new_rows_of_embeddings_do_not_decay_and_those_of_the_head_are_the_heads() -> None:
    found = kinds(adapted(r=4, target_modules=["embed_tokens", "lm_head"]))
    assert {name.split(".")[-2] for name in found["rest"]} == {"lora_embedding_A", "lora_embedding_B"}
    assert {name.split(".")[-3] for name in found["head"]} == {"lora_A", "lora_B"}
    rows = kinds(adapted(r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 4]}))
    assert {name.split(".")[-2] for name in rows["rest"]} == {"trainable_tokens_delta"}
    saved = kinds(adapted(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]))
    assert {name.split(".")[-4] for name in saved["rest"]} == {"embed_tokens"}
    assert {name.split(".")[-4] for name in saved["head"]} == {"lm_head"}


def test_a_model_without_transformers_is_divided_as_well() -> None:
    plain = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 1), nn.LayerNorm(1))
    plain.scale = nn.Parameter(torch.ones(()))
    found = {group["kind"]: [name for name, _ in group["params"]] for group in parameter_groups(plain, 0.5)}
    assert found == {"weights": ["1.weight"], "rest": ["scale", "0.weight", "1.bias", "2.weight", "2.bias"]}
