"""What a run with an adapter leaves, in each mode, opens by plain peft and transformers and computes the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from oumi_kernel import CheckpointError, ConfigError, NumericsError
from oumi_kernel.merging import merge
from tests.conftest import QUICKSTART
from tests.trainers.conftest import Train

TINY = QUICKSTART / "model"
LORA = ("--peft.lora_r=4", "--peft.lora_alpha=16", "--peft.lora_target_modules=[q_proj, v_proj]")
FLAGS = (*LORA, "--training.optimizer=adamw")
BOTH, MERGED = "--peft.peft_save_mode=adapter_and_base_model", "--peft.peft_save_mode=merged"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits


def distance(left: Any, right: Any) -> float:
    return float((logits(left) - logits(right)).abs().max())


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY)


@pytest.fixture
def expected(train: Train) -> Any:
    """Return the trained model as the library opens the adapter alone; another run with the same seed has its bits."""
    model = PeftModel.from_pretrained(base(), train(*FLAGS, name="adapter").folder)
    assert distance(model, base()) > 0.1
    return model


def test_base_and_adapter_in_one_folder_open_as_the_trained_model(train: Train, expected: Any) -> None:
    folder = train(*FLAGS, BOTH).folder
    assert distance(expected, AutoModelForCausalLM.from_pretrained(folder)) == 0
    assert distance(expected, AutoPeftModelForCausalLM.from_pretrained(folder)) == 0
    assert distance(expected, PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), folder)) == 0
    saved, original = load_file(folder / "model.safetensors"), load_file(TINY / "model.safetensors")
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in saved)
    assert AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(TINY).chat_template
    assert not (folder / "model").exists()


def test_a_merged_run_leaves_a_whole_model(train: Train, expected: Any) -> None:
    folder = train(*FLAGS, MERGED, "--training.save_steps=2").folder
    assert not list(folder.glob("adapter*"))
    assert distance(expected, AutoModelForCausalLM.from_pretrained(folder)) < 1e-4
    assert GenerationConfig.from_pretrained(folder).eos_token_id == GenerationConfig.from_pretrained(TINY).eos_token_id
    assert (folder / "checkpoint-2/adapter_model.safetensors").exists()  # from which a run goes on
    _, _, written = merge(folder / "checkpoint-2")
    assert written == folder / "checkpoint-2-merged"
    assert distance(expected, AutoModelForCausalLM.from_pretrained(written)) > 1e-3  # an earlier step


def test_the_merge_command_gives_the_bits_of_a_merged_run(train: Train) -> None:
    merged = train(*FLAGS, MERGED).folder / "model.safetensors"
    _, _, written = merge(train(*FLAGS, name="adapter").folder)
    assert (written / "model.safetensors").read_bytes() == merged.read_bytes()


def test_each_mode_replaces_what_another_left_in_the_folder(train: Train, expected: Any) -> None:
    for flags in ((BOTH,), (MERGED,), (), (BOTH,), ()):
        folder = train(*FLAGS, *flags).folder
        found = AutoModelForCausalLM.from_pretrained(folder)
        assert distance(expected, found) < 1e-4, flags
    assert not (folder / "model.safetensors").exists()


def test_a_folder_that_would_open_as_something_else_is_refused_before_training(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"peft.peft_save_mode: the folder would not open as the trained model"):
        train(*FLAGS, BOTH, "--peft.peft_kwargs.use_dora=true")
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_an_adapter_that_transformers_cannot_load_alone_is_saved_with_a_warning(train: Train, caplog: Any) -> None:
    folder = train(*FLAGS, "--peft.peft_kwargs.use_dora=true").folder
    assert "opens with AutoPeftModelForCausalLM alone" in (folder / "logs/rank_0.log").read_text()
    assert distance(AutoPeftModelForCausalLM.from_pretrained(folder), base()) > 0.1


def test_the_adapter_is_kept_where_merging_fails(train: Train, monkeypatch: pytest.MonkeyPatch, expected: Any) -> None:
    monkeypatch.setattr("oumi_plugins.peft._merging.EXACT", -1.0)
    with pytest.raises(NumericsError) as caught:
        train(*FLAGS, MERGED)
    note = caught.value.__notes__[-1]
    folder = Path(note.removeprefix("The adapter alone was saved: "))
    assert distance(expected, PeftModel.from_pretrained(base(), folder)) == 0
    assert not (folder / "config.json").exists()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_that_was_quantised_to_train_on_is_saved_as_it_was_before(train: Train, bits: int) -> None:
    flags = (*FLAGS, "--peft.q_lora=true", f"--peft.q_lora_bits={bits}")
    adapter = train(*flags, name="adapter").folder
    expected = PeftModel.from_pretrained(base(), adapter)
    assert distance(expected, base()) > 0.1
    for mode in (BOTH, MERGED):
        found = AutoModelForCausalLM.from_pretrained(train(*flags, mode).folder)
        assert getattr(found.config, "quantization_config", None) is None
        assert distance(expected, found) < 1e-4
    _, _, written = merge(adapter)
    assert distance(expected, AutoModelForCausalLM.from_pretrained(written)) < 1e-4


@pytest.mark.parametrize("mode", [BOTH, MERGED])
def test_a_base_that_does_not_fit_as_it_is_saved_leaves_the_adapter(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    """Its linear layers are in 4 bits while it trains: where those have room, the whole base may have none."""
    usage, whole = shutil.disk_usage(tmp_path), (TINY / "model.safetensors").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=whole * 9 // 10))
    with pytest.raises(CheckpointError, match=r"the model needs ([\d,]+) bytes, and [\d,]+ bytes are free") as caught:
        train(*FLAGS, mode, "--peft.q_lora=true")
    needed = int(str(caught.value).split(" needs ")[1].split()[0].replace(",", ""))
    assert needed == pytest.approx(whole, rel=0.02)
    folder = Path(caught.value.__notes__[-1].removeprefix("The adapter alone was saved: "))
    assert distance(PeftModel.from_pretrained(base(), folder), base()) > 0.1
    assert not {"config.json", "model.safetensors", ".tmp-model"} & {path.name for path in folder.iterdir()}


def test_changes_to_the_models_configuration_come_along(train: Train) -> None:
    changes = "--model.model_kwargs.max_position_embeddings=256"
    for folder in (train(*FLAGS, MERGED, changes).folder, merge(train(*FLAGS, changes, name="adapter").folder)[2]):
        assert AutoModelForCausalLM.from_pretrained(folder).config.max_position_embeddings == 256
