"""LoRA through the whole product: what trains, what is left behind, and that it goes on as if it was never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from oumi_kernel import ConfigError
from tests.conftest import QUICKSTART
from tests.trainers.conftest import Train

TINY = QUICKSTART / "model"
LORA = ("--peft.lora_r=4", "--peft.lora_alpha=16", "--peft.lora_target_modules=[q_proj, v_proj]")
ADAMW = "--training.optimizer=adamw"


def opened(folder: Path) -> Any:
    """Open an adapter as its users do: the model that it names, and the adapter beside it."""
    name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), folder)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


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
