"""The estimate of an adapter's memory on whole and on quantised weights, against what a process really takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import QUICKSTART, few_of
from tests.peft.quantised import TARGETS, TINY, base
from tests.trainers.test_estimate import ON_A_CPU, configure, estimated, real_runs

SHAPE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 10, "vocab_size": 2048}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
WHOLE = {"q_lora": False}
SHORT: dict[str, Any] = {"per_device_train_batch_size": 1, "enable_gradient_checkpointing": True}  # saving takes most
FEW_ROWS = {"per_device_train_batch_size": 2}  # many a CPU computes bfloat16 in software, which takes minutes
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "4 bits": ({}, {}),
    "4 bits, computed in bfloat16": (
        {"bnb_4bit_compute_dtype": "bfloat16"},
        {"mixed_precision_dtype": "bf16", **FEW_ROWS},
    ),
    "4 bits, recomputed": ({}, {"enable_gradient_checkpointing": True}),
    "8 bits": ({"q_lora_bits": 8}, {}),
    "8 bits, recomputed": ({"q_lora_bits": 8}, {"enable_gradient_checkpointing": True}),
    "LoRA": (WHOLE, {}),
    "LoRA, recomputed": (WHOLE, {"enable_gradient_checkpointing": True}),
    "LoRA in bfloat16": (WHOLE, {"mixed_precision_dtype": "bf16", **FEW_ROWS}),
    "LoRA, merged when saved": (WHOLE | {"peft_save_mode": "merged"}, SHORT),
    "LoRA, saved with its base": (WHOLE | {"peft_save_mode": "adapter_and_base_model"}, SHORT),
    "4 bits, merged when saved": ({"peft_save_mode": "merged"}, SHORT),
}
FEW = ["4 bits", "8 bits, recomputed", "LoRA", "LoRA, merged when saved"]
"""Those that are measured without `--exhaustive`."""


def quantised(folder: Path, model: Path, peft: dict[str, Any], **training: Any) -> Path:
    config = configure(folder, model, **({"per_device_train_batch_size": 6} | training))
    text = json.loads(config.read_text())
    text["model"] |= {"load_pretrained_weights": True, "model_max_length": 256}
    text["peft"] = {"q_lora": True, "lora_target_modules": "all-linear"} | peft
    config.write_text(json.dumps(text))
    answer = {"role": "assistant", "content": "A long answer. " * 60}
    row = json.dumps({"messages": [{"role": "user", "content": "A question?"}, answer]})
    (folder / "rows.jsonl").write_text("\n".join([row] * 16))
    return config


@pytest.mark.parametrize("way", ["fp4", "nested", "8 bits"])
def test_parameters_are_counted_as_numbers_and_weights_as_bytes(tmp_path: Path, way: str) -> None:
    keys = {
        "fp4": {},
        "nested": {"bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True},
        "8 bits": {"q_lora_bits": 8},
    }
    found = estimated(quantised(tmp_path, TINY, keys[way] | {"lora_r": 4, "lora_target_modules": TARGETS}))
    model = base(way)
    whole = AutoModelForCausalLM.from_pretrained(TINY)
    adapter = found.estimate_of_run.trained
    assert found.estimate_of_run.parameters == whole.num_parameters() + adapter
    saved = {id(tensor): tensor for tensor in (*model.state_dict(keep_vars=True).values(), *model.buffers())}
    real = sum(tensor.numel() * tensor.element_size() for tensor in saved.values()) + adapter * 4
    assert found.bytes_of("weights") == pytest.approx(real, rel=0.01)
    assert found.bytes_of("final model") == adapter * 4
    assert found.bytes_of("activations") > 0


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """Return way -> configuration of a run, and what the run takes at its peak without libraries."""
    model = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(QUICKSTART / "model", model)
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | SHAPE | HEADS))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)

    def make(folder: Path, way: str) -> Path:
        if way == "tiny":
            return quantised(folder, TINY, {}, per_device_train_batch_size=1)
        return quantised(folder, model, WAYS[way][0], **WAYS[way][1])

    ways = list(WAYS) if request.config.getoption("exhaustive") else FEW
    return real_runs(tmp_path_factory.mktemp("real"), ways, make)


@pytest.mark.slow
@ON_A_CPU
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("way", few_of(WAYS, FEW))
def test_the_peak_is_that_of_a_real_run_within_a_fifth(way: str, real: dict[str, tuple[Path, int]]) -> None:
    config, peak = real[way]
    assert estimated(config).estimate_of_run.peak_bytes == pytest.approx(peak, rel=0.2)
