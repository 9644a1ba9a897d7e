"""Tokens that are added to a model: their rows train, are saved where they belong, and ties stay as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from oumi_kernel import ConfigError
from oumi_kernel.merging import merge
from oumi_plugins.peft._new_tokens import NewTokens
from oumi_plugins.trainers._parameters import parameter_groups
from tests.conftest import QUICKSTART
from tests.trainers.conftest import Finished, Train

TINY = QUICKSTART / "model"
TOKENS = ["<open>", "<close>"]
ROWS = [1024, 1025]
ADDED = f"--model.tokenizer_kwargs.additional_special_tokens={json.dumps(TOKENS)}"
LORA = ("--peft.lora_r=4", "--peft.lora_target_modules=[q_proj, v_proj]")
DELTA = "token_adapter.trainable_tokens_delta"


@pytest.fixture
def start(train: Train, tmp_path: Path) -> Any:
    """Return `start(*flags, base=TINY)`: a run on examples that hold the added tokens."""

    def run(*flags: str, base: Path = TINY, name: str = "run") -> Finished:
        turns = [{"role": "user", "content": "<open>?"}, {"role": "assistant", "content": "<close> yes <open>"}]
        data = tmp_path / "tokens.jsonl"
        data.write_text("\n".join(json.dumps({"messages": turns}) for _ in range(8)))
        places = (f"--data.train.datasets[0].dataset_path={data}", f"--model.model_name={base}")
        return train(*places, "--training.optimizer=adamw", *flags, name=name)

    return run


def base_with(folder: Path, *, rows: int = 1024, tied: bool = True) -> Path:
    """Write the tiny model with spare rows, or with a head of its own."""
    model = AutoModelForCausalLM.from_pretrained(TINY)
    model.resize_token_embeddings(rows)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone() * 0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


def embeddings(model: Any) -> torch.Tensor:
    """Return the embeddings, (rows, width), with what an adapter puts into them."""
    with torch.no_grad():
        return model.get_input_embeddings()(torch.arange(model.config.vocab_size))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[5, 6, *ROWS, 7]])).logits


@pytest.mark.parametrize("rows", [1024, 1040], ids=["full", "padded"])
def test_new_rows_train_with_an_adapter_and_are_saved_where_they_belong(start: Any, tmp_path: Path, rows: int) -> None:
    base = base_with(tmp_path / "base", rows=rows)
    folder = start(*LORA, ADDED, base=base).folder
    weights = load_file(folder / "adapter_model.safetensors")
    saved = {name: tuple(weight.shape) for name, weight in weights.items() if "lora" not in name}
    assert saved == {f"base_model.model.model.embed_tokens.{DELTA}": (2, 64)}
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(TOKENS) == ROWS
    found, before = embeddings(model), embeddings(AutoModelForCausalLM.from_pretrained(base))
    assert torch.equal(found[:1024], before[:1024])
    assert torch.equal(found[ROWS], weights[f"base_model.model.model.embed_tokens.{DELTA}"])
    if rows > 1024:
        assert ((found[ROWS] - before[ROWS]).abs().amax(dim=1) > 1e-3).all()
        assert torch.equal(found[1026:], before[1026:])
    assert model.get_output_embeddings().weight.shape[0] == max(rows, 1026)
    assert torch.equal(model.get_output_embeddings().weight, found)


def test_rows_that_were_saved_are_those_that_were_trained(start: Any, tmp_path: Path) -> None:
    straight = start(*LORA, ADDED, "--training.save_steps=2", "--training.max_steps=4", name="straight").folder
    early = load_file(straight / "checkpoint-2/adapter_model.safetensors")
    late = load_file(straight / "adapter_model.safetensors")
    (name,) = (name for name in late if DELTA in name)
    assert ((early[name] - late[name]).abs().amax(dim=1) > 1e-3).all()
    flags = ("--training.max_steps=4", f"--training.resume_from_checkpoint={straight}/checkpoint-2")
    resumed = load_file(start(*LORA, ADDED, *flags, name="resumed").folder / "adapter_model.safetensors")
    assert all(torch.equal(resumed[key], late[key]) for key in late)


def test_a_head_of_its_own_gets_trained_rows_too(start: Any, tmp_path: Path) -> None:
    base = base_with(tmp_path / "base", tied=False)
    folder = start(*LORA, ADDED, base=base).folder
    weights = load_file(folder / "adapter_model.safetensors")
    names = {f"base_model.model.{layer}.{DELTA}" for layer in ("lm_head", "model.embed_tokens")}
    assert {name for name in weights if "lora" not in name} == names
    assert not torch.equal(*(weights[name] for name in names))
    expected = logits(AutoPeftModelForCausalLM.from_pretrained(folder))
    merged = AutoModelForCausalLM.from_pretrained(merge(folder)[2])
    assert merged.config.tie_word_embeddings is False
    assert torch.allclose(logits(merged), expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["merged", "adapter_and_base_model"])
def test_a_whole_model_has_the_trained_rows_and_keeps_its_tie(start: Any, mode: str) -> None:
    adapter = start(*LORA, ADDED, name="adapter").folder
    folder = start(*LORA, ADDED, f"--peft.peft_save_mode={mode}").folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(logits(model), logits(AutoPeftModelForCausalLM.from_pretrained(adapter)), atol=1e-4)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(folder)) == 1026
    assert model.get_input_embeddings().weight.shape == (1026, 64)
    assert torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("rows", "tied"), [(1024, True), (1040, True), (1024, False)])
def test_training_the_whole_model_trains_new_rows_and_keeps_ties(
    start: Any, tmp_path: Path, rows: int, tied: bool
) -> None:
    base = base_with(tmp_path / "base", rows=rows, tied=tied)
    short = AutoModelForCausalLM.from_pretrained(start(ADDED, "--training.max_steps=1", base=base, name="a").folder)
    folder = start(ADDED, "--training.max_steps=3", base=base, name="b").folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert embeddings(model).shape == (max(rows, 1026), 64)
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(TOKENS) == ROWS
    assert ((embeddings(model)[ROWS] - embeddings(short)[ROWS]).abs().amax(dim=1) > 1e-3).all()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied


def test_a_token_that_only_pads_needs_no_row_in_the_adapter(start: Any) -> None:
    folder = start(*LORA, "--model.tokenizer_pad_token=<pad!>").folder
    assert not [name for name in load_file(folder / "adapter_model.safetensors") if "lora" not in name]
    assert "the token <pad!> only pads: its row, 1024, is not trained" in (folder / "logs/rank_0.log").read_text()
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == 1024 < model.config.vocab_size


def test_the_header_says_which_rows_train(start: Any) -> None:
    text = (start(*LORA, ADDED).folder / "logs/rank_0.log").read_text()
    assert "rows of single tokens that train: model.embed_tokens 2" in text


@pytest.mark.parametrize("tied", [True, False])
def test_weight_decay_leaves_the_rows_of_embeddings_alone(tmp_path: Path, tied: bool) -> None:
    base = AutoModelForCausalLM.from_pretrained(base_with(tmp_path / "base", tied=tied))
    rows = {name: [5, 6] for name in ("model.embed_tokens", *(() if tied else ("lm_head",)))}
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], trainable_token_indices=rows))
    groups = parameter_groups(model, 0.1)
    decay = {name: group["weight_decay"] for group in groups for name, _ in group["params"]}
    found = {name.removeprefix("base_model.model."): value for name, value in decay.items() if DELTA in name}
    expected = {f"model.embed_tokens.{DELTA}.default": 0.0}
    assert found == expected | ({} if tied else {f"lm_head.{DELTA}.default": 0.1})  # a head decays
    assert {value for name, value in decay.items() if "lora" in name} == {0.1}


def test_rows_of_ones_choice_train_as_well(start: Any) -> None:
    folder = start(*LORA, "--peft.peft_kwargs.trainable_token_indices=[5, 6]").folder
    weights = load_file(folder / "adapter_model.safetensors")
    assert weights[f"base_model.model.model.embed_tokens.{DELTA}"].shape == (2, 64)


def test_settings_that_leave_a_new_row_random_are_refused(start: Any) -> None:
    message = r"trainable_token_indices: the rows of the added token <close> \(1025\) in model.embed_tokens stay"
    with pytest.raises(ConfigError, match=message):
        start(*LORA, ADDED, "--peft.peft_kwargs.trainable_token_indices=[5, 1024]")


def test_a_method_that_trains_no_rows_is_refused_unless_the_embeddings_train_whole() -> None:
    new = NewTokens(AutoModelForCausalLM.from_pretrained(TINY), {"<open>": 1024})
    message = r"peft.lora_modules_to_save: this method leaves the rows of the added token <open> \(1024\) .* random"
    with pytest.raises(ConfigError, match=message):
        new.trained({}, known=())
    whole = {"modules_to_save": ["embed_tokens"]}
    assert new.trained(whole, known=()) == whole
    new.check(LoraConfig(modules_to_save=["embed_tokens"]))
    assert NewTokens(AutoModelForCausalLM.from_pretrained(TINY), {}).trained({}, known=()) == {}


def test_an_adapter_goes_on_with_its_rows(start: Any) -> None:
    first = start(*LORA, ADDED, "--training.max_steps=4", "--training.save_steps=0", name="first").folder
    before = load_file(first / "adapter_model.safetensors")
    second = start("--training.use_peft=true", base=first, name="second").folder
    after = load_file(second / "adapter_model.safetensors")
    (name,) = (name for name in before if DELTA in name)
    assert after.keys() == before.keys()
    assert ((after[name] - before[name]).abs().amax(dim=1) > 1e-3).all()
    assert AutoTokenizer.from_pretrained(second).convert_tokens_to_ids(TOKENS) == ROWS
    with pytest.raises(ConfigError, match=r"the rows of the added token <third> \(1026\) in model.embed_tokens stay"):
        start("--model.tokenizer_kwargs.extra_special_tokens=[<third>]", "--training.use_peft=true", base=first)
