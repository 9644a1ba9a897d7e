"""Models: weights, number formats, changes to the configuration, frozen modules, mistakes found before data is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig

from oumi_kernel import ConfigError
from oumi_kernel.config import DataParams, DatasetParams, DatasetSplitParams
from tests.models.conftest import TINY, Load


def test_the_weights_are_those_of_the_folder(load: Load) -> None:
    model, plain = load().model(), AutoModelForCausalLM.from_pretrained(TINY)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert model.config.use_cache is False


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", torch.float32), ("BF16", torch.bfloat16), ("half", torch.float16), ("auto", torch.float32)],
)
def test_the_number_format_is_that_of_the_section(load: Load, name: str, dtype: torch.dtype) -> None:
    assert {p.dtype for p in load(torch_dtype_str=name).model().parameters()} == {dtype}


def test_bytes_are_no_format_to_train_in(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"model.torch_dtype_str: weights of uint8 cannot be trained. Formats: "):
        load(torch_dtype_str="uint8").model()


def test_random_weights_depend_on_the_seed_alone(load: Load) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(seed + 3)
        return load(load_pretrained_weights=False, seed=seed).model().lm_head.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_random_weights_leave_the_callers_random_numbers_alone(load: Load) -> None:
    loader = load(load_pretrained_weights=False)
    tokenizer = loader.tokenizer()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loader.model(tokenizer)
    assert torch.equal(torch.rand(3), expected)


def test_changes_reach_the_models_configuration(load: Load) -> None:
    config = load(model_kwargs={"attention_dropout": 0.25}).model().config
    assert config.attention_dropout == 0.25


def test_scaled_positions_keep_their_base(load: Load) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    config = load(model_kwargs={"rope_scaling": scaling}).model().config
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["factor"] == 4.0


def test_dropout_can_be_switched_off_as_a_whole(load: Load, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_dropout": 0.5}))
    assert load(model_name="./model").model().config.attention_dropout == 0.5
    off = load(model_name="./model", model_kwargs={"disable_dropout": True})
    assert off.model().config.attention_dropout == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atention_dropout": 0.1}, r"LlamaConfig has no 'atention_dropout'. did you mean 'attention_dropout'\?"),
        ({"to_dict": 1}, r"LlamaConfig has no 'to_dict'"),
        ({"torch_dtype": "bfloat16"}, r"set model.torch_dtype_str"),
        ({"num_attention_heads": "four"}, r"model_kwargs.num_attention_heads: 'four' is refused"),
        ({"rope_scaling": {"type": "spiral", "factor": 2.0}}, r"no scaling is named 'spiral'; known: default, linear"),
        ({"num_key_value_heads": 0}, r"model.model_kwargs: the model cannot be built with these"),
    ],
)
def test_a_change_that_the_configuration_does_not_take_is_an_error(load: Load, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(model_kwargs=change).model()


def test_frozen_modules_are_named_by_whole_parts_of_their_names(load: Load) -> None:
    model = load(freeze_layers=["layers.0", "embed_tokens"]).model()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    expected = {n for n, _ in model.named_parameters() if n.startswith("model.layers.0.")}
    assert frozen == expected | {"model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("vision_tower", r"freeze_layers\[1\]: 'vision_tower' matches no module of LlamaForCausalLM. Modules: model, "),
        ("self_atn", r"did you mean 'self_attn'\?"),
        ("self", r"'self' matches no module"),
        ("rotary_emb", r"names modules without parameters"),
    ],
)
def test_a_pattern_that_freezes_nothing_is_an_error_before_data_is_read(load: Load, pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(freeze_layers=["lm_head", pattern]).tokenizer()


def test_an_attention_that_is_not_there_is_an_error_before_data_is_read(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"model.attn_implementation: .*sdpa and eager need nothing more"):
        load(attn_implementation="no_such_attention").tokenizer()


def test_the_attention_of_the_section_is_the_models(load: Load) -> None:
    assert load(attn_implementation="eager").model().config._attn_implementation == "eager"


def test_placing_the_model_is_left_to_the_strategy(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"model.device_map: 'cuda:1': the strategy places the model. Write auto"):
        load(device_map="cuda:1").tokenizer()


def test_arguments_of_a_peft_method_reach_the_library(load: Load) -> None:
    assert {p.device.type for p in load().model(device_map="meta").parameters()} == {"meta"}


def test_a_folder_that_is_not_there_is_an_error_with_the_key(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"model.model_name: there is no folder '.*nowhere'. Check the path"):
        load(model_name="./nowhere").tokenizer()


def test_a_folder_without_a_model_says_what_it_lacks(load: Load, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model/config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config.json, so it holds no model"):
        load(model_name="./model", tokenizer_name=str(TINY)).tokenizer()


def test_an_adapter_alone_is_told_apart_from_a_model(load: Load, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds an adapter that does not say which model it belongs to"):
        load(model_name="./adapter").tokenizer()


def test_a_vision_language_model_is_refused_by_name(load: Load, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ConfigError, match=r"'llava' is a vision-language model; none of the installed"):
        load(model_name="./model", tokenizer_name=str(TINY)).tokenizer()


def test_weights_that_the_folder_lacks_are_not_made_up(load: Load, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack 1 of LlamaForCausalLM, among them 'model.layers.1.mlp.up_proj"):
        load(model_name="./model").model()


def test_half_a_weight_file_is_an_error_that_names_the_folder(load: Load, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"model.model_name: the folder '.*model' holds no model that"):
        load(model_name="./model").model()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator, where it has a backward pass")
def test_flex_attention_is_refused_where_it_has_no_backward_pass(load: Load) -> None:
    with pytest.raises(ConfigError, match="attn_implementation: flex_attention has no backward pass on a CPU"):
        load(attn_implementation="flex_attention").tokenizer()


def test_packs_are_refused_for_a_model_that_reads_across_their_borders(load: Load, tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=1024, hidden_size=32, state_size=4, num_hidden_layers=2)
    config.save_pretrained(tmp_path / "mamba")
    loader = load(model_name=str(tmp_path / "mamba"), tokenizer_name=str(TINY))
    packed = DatasetSplitParams(datasets=[DatasetParams(dataset_name="a")], pack=True, stream=True)
    assert loader.tokenizer()  # without packs it is fine
    data = DataParams(train=packed)
    loader.run = msgspec.structs.replace(loader.run, config=msgspec.structs.replace(loader.run.config, data=data))
    with pytest.raises(ConfigError, match=r"data\.train\.pack: MambaForCausalLM reads across the borders"):
        loader.tokenizer()
