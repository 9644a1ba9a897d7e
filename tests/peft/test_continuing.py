"""Going on with an adapter: its weights and its config are where training begins, and nothing may contradict them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from oumi_kernel import CheckpointError, ConfigError
from tests.peft.conftest import TINY, logits, opened
from tests.trainers.conftest import Train

LORA = ("--peft.lora_r=4", "--peft.lora_alpha=16", "--peft.lora_target_modules=[q_proj, v_proj]")
ADAMW = "--training.optimizer=adamw"
STILL = ("--training.learning_rate=0", "--training.max_steps=1", "--training.weight_decay=0")


@pytest.fixture
def first(train: Train) -> Path:
    return train(*LORA, ADAMW, name="first").folder


def same(left: Path, right: Path) -> bool:
    found, expected = (load_file(folder / "adapter_model.safetensors") for folder in (left, right))
    return found.keys() == expected.keys() and all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


@pytest.mark.parametrize(
    "how",
    [
        ("--model.adapter_model={first}",),
        ("--model.adapter_model={first}", *LORA),
        ("--model.adapter_model={first}", "--training.use_peft=true"),
        ("--model.model_name={first}",),
        ("--model.model_name={first}", "--peft.peft_method=lora"),
    ],
)
def test_training_begins_where_the_adapter_ended(train: Train, first: Path, how: tuple[str, ...]) -> None:
    flags = [flag.format(first=first) for flag in how]
    still = train(*flags, ADAMW, *STILL, name="still").folder
    assert same(still, first)
    log = (still / "logs/rank_0.log").read_text()
    assert f"goes on with {first}" in log
    assert "LORA, rank 4, alpha 16" in log
    config = json.loads((still / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (4, str(TINY.resolve()))
    assert json.loads((still / "run.json").read_text())["model"]["peft"]["goes_on_with"] == str(first)
    on = train(*flags, ADAMW, name="on").folder
    assert not same(on, first)
    assert not torch.equal(logits(opened(on)), logits(opened(first)))


def test_another_method_goes_on_as_itself(train: Train) -> None:
    first = train("--peft.peft_method=ia3", ADAMW, name="first").folder
    still = train(f"--model.adapter_model={first}", ADAMW, *STILL, name="still").folder
    assert same(still, first)


def test_the_same_modules_may_be_named_in_another_way(train: Train) -> None:
    first = train("--peft.lora_target_modules=all-linear", ADAMW, name="first").folder
    every = "[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"
    for number, flags in enumerate((f"--peft.lora_target_modules={every}", "--peft.lora_target_modules=all-linear")):
        assert same(train(f"--model.adapter_model={first}", flags, ADAMW, *STILL, name=f"still{number}").folder, first)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--peft.lora_r=16",), r"peft\.lora_r: is 16 here, and 4 in the adapter"),
        (("--peft.lora_dropout=0.5",), r"peft\.lora_dropout: is 0\.5 here, and 0\.0 in the adapter"),
        (("--peft.lora_target_modules=[k_proj]",), r"lora_target_modules: is \['k_proj'\] here, and \['q_proj', 'v_p"),
        (("--peft.peft_kwargs.use_dora=true",), r"peft_kwargs\.use_dora: is True here, and False in the adapter"),
        (("--peft.peft_method=ia3",), r"peft\.peft_method: is ia3 here, and lora in the adapter"),
        (("--training.use_peft=false",), r"model\.adapter_model: names an adapter, but training\.use_peft"),
    ],
)
def test_what_contradicts_the_adapter_is_refused(
    train: Train, first: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(f"--model.adapter_model={first}", *flags, name="on")


def test_what_is_no_adapter_is_refused(train: Train, first: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.adapter_model: '.*' holds no adapter: .*no adapter_config\.json"):
        train(f"--model.adapter_model={TINY}")
    with pytest.raises(ConfigError, match="there is no such folder"):
        train("--model.adapter_model=/nowhere/at/all")
    pickled = tmp_path / "pickled"
    shutil.copytree(first, pickled)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"no adapter_model\.safetensors"):
        train(f"--model.adapter_model={pickled}")
    other = tmp_path / "other"
    shutil.copytree(first, other)
    weights = load_file(other / "adapter_model.safetensors")
    dropped = min(weights)
    save_file(
        {name: tensor for name, tensor in weights.items() if name != dropped}, other / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match="lacks 1 weights"):
        train(f"--model.adapter_model={other}")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="does not say which model it belongs to"):
        train(f"--model.model_name={other}")
    (other / "adapter_config.json").write_text(json.dumps(config | {"task_type": "SEQ_CLS"}))
    with pytest.raises(ConfigError, match="is for SEQ_CLS"):
        train(f"--model.adapter_model={other}")


def test_an_adapter_saved_by_the_library_goes_on(train: Train, tmp_path: Path) -> None:
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["up_proj"], init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), config)
    model.save_pretrained(tmp_path / "library")
    still = train(f"--model.adapter_model={tmp_path / 'library'}", ADAMW, *STILL, name="still").folder
    assert same(still, tmp_path / "library")
    assert torch.equal(logits(opened(still)), logits(model))
