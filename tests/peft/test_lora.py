"""LoRA through the whole product: what trains, what is left behind, and that it goes on as if it was never stopped."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from oumi_kernel import ConfigError
from tests.peft.conftest import TINY, logits, opened
from tests.trainers.conftest import Train

LORA = ("--peft.lora_r=4", "--peft.lora_alpha=16", "--peft.lora_target_modules=[q_proj, v_proj]")
ADAMW = "--training.optimizer=adamw"


def test_an_adapter_is_saved_that_the_library_opens(train: Train) -> None:
    run = train(*LORA, ADAMW)
    names = {path.name for path in run.folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not names & {"config.json", "model.safetensors", "README.md"}
    weights = load_file(run.folder / "adapter_model.safetensors")
    layers = AutoModelForCausalLM.from_pretrained(TINY).config.num_hidden_layers
    assert len(weights) == layers * 2 * 2
    assert all(bool(weight.any()) for weight in weights.values())
    model = opened(run.folder)
    assert model.peft_config["default"].r == 4
    assert not torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(TINY)))
    assert AutoTokenizer.from_pretrained(run.folder).chat_template
    with_transformers_alone = AutoModelForCausalLM.from_pretrained(run.folder)
    assert torch.equal(logits(model), logits(with_transformers_alone))


def test_a_run_that_goes_on_ends_with_the_same_bits(train: Train) -> None:
    flags = (*LORA, ADAMW, "--peft.lora_dropout=0.1", "--training.save_steps=2", "--training.max_steps=4")
    straight = train(*flags, name="straight")
    resumed = train(
        *flags, f"--training.resume_from_checkpoint={straight.folder}/checkpoint-2", name="resumed", rows=24
    )
    for name in ("adapter_model", "optimizer", "random_state"):
        expected = load_file(straight.folder / f"checkpoint-4/{name}.safetensors")
        found = load_file(resumed.folder / f"checkpoint-4/{name}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items()), name
    early = load_file(straight.folder / "checkpoint-2/adapter_model.safetensors")
    last = load_file(straight.folder / "adapter_model.safetensors")
    assert not any(torch.equal(tensor, last[key]) for key, tensor in early.items())


@pytest.mark.parametrize("before", ["full", "lora"])
def test_what_an_earlier_run_left_does_not_open_as_another_model(train: Train, before: str) -> None:
    first, second = ((), LORA) if before == "full" else (LORA, ())
    train(*first, name="run")
    folder = train(*second, name="run").folder
    adapter, full = {"adapter_config.json", "adapter_model.safetensors"}, {"config.json", "model.safetensors"}
    names = {path.name for path in folder.iterdir()} & (adapter | full)
    assert names == (adapter if before == "full" else full)


def test_a_list_of_modules_that_is_written_as_text_is_refused(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"Write a list: \[q_proj, v_proj\]"):
        train("--peft.lora_target_modules=q_proj,v_proj")


def test_the_header_and_the_record_say_what_is_adapted_and_what_is_frozen(train: Train) -> None:
    run = train(*LORA, "--model.freeze_layers=[layers.0]")
    log = (run.folder / "logs/rank_0.log").read_text()
    record = json.loads((run.folder / "run.json").read_text())["model"]
    layers = AutoModelForCausalLM.from_pretrained(TINY).config.num_hidden_layers
    count = layers - 1
    assert f"{2 * count} of {7 * layers} linear layers" in log
    assert f"lora_target_modules: q_proj {count}, v_proj {count}" in log
    assert "layers.0: 1" in log or "layers.0" in log
    assert record["peft"]["peft.lora_target_modules"] == {"q_proj": count, "v_proj": count}
    assert record["peft"]["linear_layers"] == {"adapted": 2 * count, "all": 7 * layers}
    assert record["models"]["model.freeze_layers"]["layers.0"] >= 1
    weights = load_file(run.folder / "adapter_model.safetensors")
    assert record["trained"] == sum(weight.numel() for weight in weights.values())
    assert record["parameters"] > record["trained"]
    assert not any("layers.0." in name for name in weights)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--peft.lora_target_modules=[q_proj, q_projj]",),
            r"lora_target_modules\[1\]: 'q_projj' matches no module of LlamaForCausalLM\. "
            r"did you mean 'q_proj'\? Linear modules: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj\.",
        ),
        (("--peft.lora_target_modules=nothing_.*",), r"peft\.lora_target_modules: 'nothing_\.\*' matches no module"),
        (('--peft.lora_target_modules="(q"',), r"'\(q' is no regular expression"),
        ((*LORA, "--peft.lora_exclude_modules=[q_proj]"), r"whole names: write '\.\*q_proj'"),
        ((*LORA, "--peft.lora_modules_to_save=[lm_headd]"), r"lora_modules_to_save\[0\].*did you mean 'lm_head'"),
        ((*LORA, "--peft.lora_target_parameters=[experts.gate]"), r"lora_target_parameters\[0\].*no parameter"),
        ((*LORA, "--peft.lora_exclude_modules=[.*q_proj]"), r"every module that 'q_proj' matches is left out"),
        ((*LORA, "--peft.peft_kwargs.rank_pattern={k_proj: 2}"), r"'k_proj' matches no module that is adapted"),
        (("--peft.lora_target_modules=[self_attn]",), r"peft refuses these settings: Target module"),
        (("--peft.lora_r=4", "--model.load_pretrained_weights=false"), "random weights cannot be had again"),
        ((*LORA, "--peft.peft_kwargs.layers_to_transform=[99]"), "peft refuses these settings: .*layers_to_transform"),
    ],
)
def test_what_would_come_to_nothing_is_refused(train: Train, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(*flags)
