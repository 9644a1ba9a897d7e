"""An adapter merged into its base computes what it did beside it, whatever its method; what cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from oumi_kernel import CheckpointError, ConfigError, NumericsError
from oumi_kernel.merging import merge
from tests.conftest import QUICKSTART

TINY = QUICKSTART / "model"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODULES = {"target_modules": ["q_proj", "v_proj"]}
METHODS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=4, **MODULES),
    "biases": lambda: peft.LoraConfig(r=4, bias="all", **MODULES),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, **MODULES),
    "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True, target_modules="all-linear"),
    "modules_to_save": lambda: peft.LoraConfig(r=4, modules_to_save=["lm_head"], **MODULES),
    "rows": lambda: peft.LoraConfig(r=4, trainable_token_indices=[5, 900], **MODULES),
    "tied_head": lambda: peft.LoraConfig(r=4, target_modules=["lm_head"]),
    "tied_embeddings": lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens"]),
    "parameters": lambda: peft.LoraConfig(r=4, target_modules=[], target_parameters=["q_proj.weight"]),
    "ia3": peft.IA3Config,
    "vera": lambda: peft.VeraConfig(r=8, **MODULES),
    "oft": lambda: peft.OFTConfig(r=4, oft_block_size=0, **MODULES),
    "adalora": lambda: peft.AdaLoraConfig(total_step=10, **MODULES),
}

Make = Callable[..., Path]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits


def distance(left: Any, right: Any) -> float:
    return float((logits(left) - logits(right)).abs().max())


def opened(folder: Path, **arguments: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **arguments)


def adapted(folder: Path, base: Path = TINY, **arguments: Any) -> Any:
    return peft.PeftModel.from_pretrained(opened(base, **arguments), folder)


def changed(folder: Path, **fields: Any) -> None:
    """Change the configuration of a saved adapter."""
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return `make(config, base=TINY)`: an adapter by the library alone, its weights as if it had been trained."""

    def save(config: Any = None, base: Path = TINY, name: str = "adapter") -> Path:
        torch.manual_seed(0)
        model = peft.get_peft_model(opened(base), config or METHODS["lora"]())
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
        return tmp_path / name

    return save


@pytest.fixture
def base_in_bfloat16(tmp_path: Path) -> Path:
    opened(TINY).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("method", METHODS)
def test_merged_weights_compute_what_the_adapter_did(make: Make, method: str) -> None:
    folder = make(METHODS[method]())
    _, merged, written = merge(folder)
    assert not (written / CONFIG).exists()
    assert distance(opened(written), adapted(folder)) < 1e-5 * 10  # logits reach 10
    assert distance(opened(written), opened(TINY)) > 0.1
    assert merged.difference <= merged.tolerance < 3e-4
    assert merged.effect > 0.1
    assert (merged.dtype, merged.rounding) == ("float32", None)


def test_an_adapter_of_zeros_leaves_every_byte_of_the_base(make: Make, base_in_bfloat16: Path) -> None:
    for number, base in enumerate((TINY, base_in_bfloat16)):
        folder = make(base=base, name=f"zeros{number}")
        save_file({name: torch.zeros_like(t) for name, t in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
        _, merged, written = merge(folder)
        assert (written / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
        assert (merged.effect, merged.difference) == (0, 0)


def test_a_base_in_16_bits_is_merged_in_float32_and_rounded_once(make: Make, base_in_bfloat16: Path) -> None:
    folder = make(base=base_in_bfloat16)
    _, merged, written = merge(folder)
    exact = adapted(folder, base_in_bfloat16, dtype=torch.float32).merge_and_unload().state_dict()
    for name, weight in load_file(written / "model.safetensors").items():
        assert torch.equal(weight, exact[name].to(torch.bfloat16)), name
    assert opened(written).dtype == torch.bfloat16
    assert merged.dtype == "bfloat16"
    assert merged.rounding is not None
    assert merged.difference <= merged.tolerance < merged.rounding < merged.rounding_tolerance < merged.effect


def test_the_merged_folder_has_tokenizer_template_and_generation_settings(make: Make, tmp_path: Path) -> None:
    folder = make()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    tokenizer.save_pretrained(folder)
    _, _, written = merge(folder, tmp_path / "deep" / "out")
    assert written == tmp_path / "deep" / "out"
    assert AutoTokenizer.from_pretrained(written).chat_template == tokenizer.chat_template
    assert GenerationConfig.from_pretrained(written).eos_token_id == GenerationConfig.from_pretrained(TINY).eos_token_id
    without = make(name="bare")
    assert AutoTokenizer.from_pretrained(merge(without)[2]).chat_template  # the base's


def test_a_wrong_merge_is_found_and_nothing_is_written(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(METHODS["tied_head"]())
    monkeypatch.setattr("oumi_plugins.peft._merging._untie", lambda _: None)  # the library would change both weights
    with pytest.raises(NumericsError, match=r"disagree: their logits differ by up to .* Nothing was written"):
        merge(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter"]


def test_a_quantised_base_is_never_merged_into(make: Make, tmp_path: Path) -> None:
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    opened(TINY, quantization_config=four_bit).save_pretrained(tmp_path / "quantised")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "quantised")
    folder = make()
    changed(folder, base_model_name_or_path=str(tmp_path / "quantised"))
    with pytest.raises(ConfigError, match=r"quantised is quantised \(bitsandbytes\).*Needed is .* --base MODEL"):
        merge(folder)
    _, _, written = merge(folder, base=str(TINY))
    assert distance(opened(written), adapted(folder)) < 1e-4


def test_what_cannot_be_merged_is_said(make: Make, tmp_path: Path) -> None:
    prompt = make(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), name="prompt")
    with pytest.raises(ConfigError, match=r"PROMPT_TUNING.*there is nothing to merge"):
        merge(prompt)
    with pytest.raises(ConfigError, match="holds a whole model and no adapter"):
        merge(TINY)
    with pytest.raises(ConfigError, match="does not exist"):
        merge(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"there is no adapter_config.json"):
        merge(tmp_path / "empty")
    folder = make()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        merge(folder, tmp_path)
    changed(folder, base_model_name_or_path="/gone/model")
    with pytest.raises(ConfigError, match=r"/gone/model, is not there. Say where it is now: --base MODEL"):
        merge(folder)
    (tmp_path / "run" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-4" / CONFIG).write_text("{}")
    with pytest.raises(ConfigError, match=f"oumi merge {tmp_path}/run/checkpoint-4"):
        merge(tmp_path / "run")


def test_an_adapter_that_is_not_whole_is_refused(make: Make) -> None:
    folder = make()
    weights = load_file(folder / WEIGHTS)
    name = sorted(weights)[0]
    save_file({key: weight for key, weight in weights.items() if key != name}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"lacks 1 weights, among them '{name}'"):
        merge(folder)
    save_file(weights | {"base_model.model.other.weight": weights[name].clone()}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"has unknown 1 weights, among them 'base_model.model.other.weight'"):
        merge(folder)
    save_file(weights | {name: weights[name][:1].clone()}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="does not fit"):
        merge(folder)
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="is not finite"):
        merge(folder)


def test_a_base_with_an_adapter_of_its_own_is_no_base(make: Make, tmp_path: Path) -> None:
    folder, beside = make(), make(name="both")
    opened(TINY).save_pretrained(beside)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(beside)
    changed(folder, base_model_name_or_path=str(beside))
    with pytest.raises(ConfigError, match=r"has an adapter itself. Merge that first"):
        merge(folder)
