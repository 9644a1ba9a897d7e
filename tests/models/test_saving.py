"""A saved folder is what its users open: the same logits, template, stop tokens; and it is opened once to check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, MixtralConfig, MixtralForCausalLM

from oumi_kernel import CheckpointError
from oumi_plugins.models._saving import load_weights
from tests.models.conftest import TINY, Load

PADDING = "<pad!>"
IDS = torch.arange(40).reshape(2, 20)
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def changed(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model as if it had been trained."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return model.eval()


def test_the_folder_opens_with_plain_transformers_and_gives_the_same_logits(load: Load, tmp_path: Path) -> None:
    loader = load(freeze_layers=["layers.0"])
    tokenizer = loader.tokenizer()
    model = changed(loader.model(tokenizer))
    loader.save(model, tokenizer, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_tied_weights_are_written_once_and_stay_tied(load: Load, tmp_path: Path) -> None:
    loader = load()
    tokenizer = loader.tokenizer()
    loader.save(changed(loader.model(tokenizer)), tokenizer, tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as reader:
        names = set(reader.keys())
    assert len({"lm_head.weight", "model.embed_tokens.weight"} & names) == 1
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()


def test_the_saved_tokenizer_renders_and_tokenises_as_the_one_in_training(load: Load, tmp_path: Path) -> None:
    loader = load(chat_template="zephyr", tokenizer_pad_token=PADDING, tokenizer_kwargs={"eos_token": "</s>"})
    tokenizer = loader.tokenizer()
    loader.save(loader.model(tokenizer), tokenizer, tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.apply_chat_template(TALK)["input_ids"] == tokenizer.apply_chat_template(TALK)["input_ids"]
    assert (again.pad_token, again.pad_token_id) == (PADDING, tokenizer.pad_token_id)


def test_the_saved_configuration_keeps_the_cache_that_training_switches_off(load: Load, tmp_path: Path) -> None:
    loader = load()
    tokenizer = loader.tokenizer()
    model = loader.model(tokenizer)
    loader.save(model, tokenizer, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["use_cache"] is True
    assert model.config.use_cache is False


def test_generation_stops_at_the_end_of_turn_of_the_template_trained_with(load: Load, tmp_path: Path) -> None:
    loader = load(chat_template="zephyr", tokenizer_kwargs={"eos_token": "</s>"})
    tokenizer = loader.tokenizer()
    loader.save(loader.model(tokenizer), tokenizer, tmp_path / "out")
    stops = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert stops == [2, tokenizer.convert_tokens_to_ids("</s>")]


def test_stop_tokens_stay_as_they_were_with_the_models_own_template(load: Load, tmp_path: Path) -> None:
    loader = load()
    tokenizer = loader.tokenizer()
    loader.save(loader.model(tokenizer), tokenizer, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 2


def test_sampling_values_without_sampling_do_not_stop_the_save(load: Load, tmp_path: Path) -> None:
    loader = load(chat_template="zephyr", tokenizer_kwargs={"eos_token": "</s>"})
    tokenizer = loader.tokenizer()
    model = loader.model(tokenizer)
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.6
    loader.save(model, tokenizer, tmp_path / "out")
    saved = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (saved.do_sample, saved.temperature) == (True, 0.6)


def test_only_the_first_process_writes_but_every_one_gathers(load: Load, tmp_path: Path) -> None:
    loader, gathered = load(), []
    tokenizer = loader.tokenizer()
    loader.component.oumi_save_model(
        model=loader.model(tokenizer),
        state=lambda: gathered.append("once"),
        tokenizer=tokenizer,
        directory=tmp_path / "out",
        run=loader.run,
    )
    assert gathered == ["once"]
    assert not (tmp_path / "out").exists()


def test_weights_are_read_back_bit_for_bit(load: Load, tmp_path: Path) -> None:
    loader = load(torch_dtype_str="bfloat16")
    tokenizer = loader.tokenizer()
    model = changed(loader.model(tokenizer))
    loader.save(model, tokenizer, tmp_path / "out")
    fresh = load(torch_dtype_str="bfloat16").model(tokenizer)
    assert loader.component.oumi_load_weights(model=fresh, directory=tmp_path / "out") is True
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
    assert fresh.lm_head.weight.data_ptr() == fresh.model.embed_tokens.weight.data_ptr()


def test_a_model_in_several_files_is_read_back(load: Load, tmp_path: Path) -> None:
    model = changed(load().model())
    model.save_pretrained(tmp_path / "out", max_shard_size="100KB")
    assert (tmp_path / "out/model.safetensors.index.json").is_file()
    fresh = load().model()
    load_weights(fresh, tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))


def test_an_architecture_whose_weights_the_library_fuses_is_saved_and_read_back(load: Load, tmp_path: Path) -> None:
    settings = MixtralConfig(
        vocab_size=1024,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        max_position_embeddings=64,
    )
    MixtralForCausalLM(settings).save_pretrained(tmp_path / "moe")
    loader = load(model_name="./moe", tokenizer_name=str(TINY))
    tokenizer = loader.tokenizer()
    model = changed(loader.model(tokenizer))
    loader.save(model, tokenizer, tmp_path / "out")
    fresh = loader.model(tokenizer)
    load_weights(fresh, tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights.pop("model.norm.weight"), r"lacks 1 weights, among them 'model.norm.weight'"),
        (lambda weights: weights.update(extra=torch.zeros(1)), r"has unknown 1 weights, among them 'extra'"),
        (lambda weights: weights.update({"model.norm.weight": torch.zeros(3)}), r"holds no readable model"),
    ],
)
def test_a_damaged_folder_is_refused_when_it_is_read_back(load: Load, tmp_path: Path, damage, message: str) -> None:
    shutil.copytree(TINY, tmp_path / "out")
    weights = load_file(tmp_path / "out/model.safetensors")
    damage(weights)
    save_file(weights, tmp_path / "out/model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_weights(load().model(), tmp_path / "out")


def test_a_save_that_lost_a_weight_is_noticed_at_once(load: Load, tmp_path: Path) -> None:
    loader = load()
    tokenizer = loader.tokenizer()
    model = loader.model(tokenizer)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "model.norm.weight"}
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, among them 'model.norm.weight'"):
        loader.component.oumi_save_model(
            model=model, state=lambda: weights, tokenizer=tokenizer, directory=tmp_path / "out", run=loader.run
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda weight: weight[:32], r"'model.norm.weight' was not gathered whole: \(32,\) of \(64,\)"),
        (lambda weight: weight[:0], r"'model.norm.weight' was not gathered whole: \(0,\) of \(64,\)"),
        (torch.zeros_like, r"'model.norm.weight' was gathered as zeros"),
    ],
    ids=["a part", "nothing", "zeros"],
)
def test_a_weight_that_was_not_gathered_is_never_written(load: Load, tmp_path: Path, wrong, message: str) -> None:
    loader = load()
    tokenizer = loader.tokenizer()
    model = loader.model(tokenizer)
    weights = model.state_dict()
    weights |= {"model.norm.weight": wrong(weights["model.norm.weight"])}
    with pytest.raises(CheckpointError, match=message):
        loader.component.oumi_save_model(
            model=model, state=lambda: weights, tokenizer=tokenizer, directory=tmp_path / "out", run=loader.run
        )
    assert not (tmp_path / "out").exists()


def test_zeros_of_the_models_own_are_saved(load: Load, tmp_path: Path) -> None:
    loader = load()
    tokenizer = loader.tokenizer()
    model = loader.model(tokenizer)
    torch.nn.init.zeros_(model.model.norm.weight)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loader.component.oumi_save_model(
        model=model, state=lambda: weights, tokenizer=tokenizer, directory=tmp_path / "out", run=loader.run
    )
    assert not load_file(tmp_path / "out/model.safetensors")["model.norm.weight"].any()


def test_a_folder_that_cannot_be_written_is_an_error_with_a_way_out(load: Load, tmp_path: Path) -> None:
    loader = load()
    tokenizer = loader.tokenizer()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write the model to .*out: .*choose another output_dir"):
        loader.save(loader.model(tokenizer), tokenizer, tmp_path / "out")
