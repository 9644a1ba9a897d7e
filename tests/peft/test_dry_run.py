"""A dry run of an adapter: the run's verdict, header and parameters, without weights; on disk the adapter alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from oumi_kernel.cli import main
from tests.test_dry_run import folder
from tests.trainers.test_estimate import estimated

__all__ = ["folder"]

GOOD = {
    "lora": ("--peft.lora_r=4",),
    "all-linear with DoRA": ("--peft.lora_target_modules=all-linear", "--peft.peft_kwargs.use_dora=true"),
    "DoRA on 4 bits": ("--peft.q_lora", "--peft.peft_kwargs.use_dora=true"),
    "a start": ("--peft.lora_init_weights=pissa",),
    "a start from data": ("--peft.lora_init_weights=eva",),
    "the head in full": ("--peft.lora_modules_to_save=[lm_head]",),
    "lora plus in 16 bits": ("--peft.peft_kwargs.lora_plus_ratio=4", "--model.torch_dtype_str=bfloat16"),
    "ia3": ("--peft.peft_method=ia3",),
    "vera": ("--peft.peft_method=vera", "--peft.peft_kwargs.r=4"),
    "oft": ("--peft.peft_method=oft", "--peft.peft_kwargs.oft_block_size=4"),
    "adalora": ("--peft.peft_method=adalora", "--training.max_steps=3"),
    "a prompt": ("--peft.peft_method=prompt_tuning", "--peft.peft_kwargs.num_virtual_tokens=3"),
}
BAD = {
    "a pattern without a match": ("--peft.lora_target_modules=[q_projj]",),
    "a start without a GPU": ("--peft.lora_init_weights=loftq",),
    "random weights": ("--peft.lora_r=4", "--model.load_pretrained_weights=false"),
    "no steps for ranks": ("--peft.peft_method=adalora", "--training.max_steps=1"),
    "no adapter": ("--model.adapter_model=./model",),
    "what peft refuses": ("--peft.peft_method=oft", "--peft.peft_kwargs.r=8"),
}


def parameters(text: str) -> str:
    (found,) = re.findall(r"([\d,]+ of [\d,]+) parameters train", text)
    return found


@pytest.mark.parametrize("flags", GOOD.values(), ids=GOOD)
def test_it_says_what_the_run_says_and_needs_no_weights(folder: Path, capsys, flags: tuple[str, ...]) -> None:
    arguments = ["run", "train.yaml", "--training.output_dir=out", "--training.optimizer=adamw", *flags]
    assert main(arguments) == 0
    said = capsys.readouterr()
    real = parameters(said.out + said.err)
    shutil.rmtree("out")
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert parameters(said.out + said.err) == real
    assert "adapter    " in said.out + said.err
    assert not Path("out").exists()


@pytest.mark.parametrize("flags", BAD.values(), ids=BAD)
def test_it_refuses_what_the_run_refuses(folder: Path, capsys, flags: tuple[str, ...]) -> None:
    arguments = ["run", "train.yaml", "--training.output_dir=out", *flags]
    verdicts = []
    for extra in ([], ["--dry-run"]):
        assert main([*arguments, *extra]) == 2
        verdicts.append(capsys.readouterr().err.splitlines()[-1])
    assert verdicts[0] == verdicts[1]


def test_what_it_writes_is_the_adapter(folder: Path, capsys) -> None:
    arguments = ["run", "train.yaml", "--training.output_dir=out", "--training.optimizer=adamw", "--peft.lora_r=4"]
    assert main([*arguments, "--training.save_steps=1"]) == 0
    written = Path("out/adapter_model.safetensors").stat().st_size
    state = Path("out/checkpoint-1/optimizer.safetensors").stat().st_size
    trained = json.loads(Path("out/run.json").read_text())["model"]["trained"]
    capsys.readouterr()
    shutil.rmtree("out")
    assert main([*arguments, "--training.save_steps=1", "--dry-run"]) == 0
    said = capsys.readouterr().out
    (one,) = re.findall(r"at once of ([\d,]+) bytes each", said)
    assert int(one.replace(",", "")) == pytest.approx(written + state, rel=0.2)
    assert f"final model      {4 * trained / 1024:.1f} KiB" in said


def test_going_on_with_an_adapter_needs_no_weights(folder: Path, capsys) -> None:
    train = ["run", "train.yaml", "--training.optimizer=adamw"]
    assert main([*train, "--training.output_dir=first", "--peft.lora_r=4"]) == 0
    Path("first/adapter_model.safetensors").unlink()
    capsys.readouterr()
    for how in ("--model.adapter_model=./first", "--model.model_name=./first"):
        assert main([*train, "--training.output_dir=on", how, "--dry-run"]) == 0
        said = capsys.readouterr()
        assert "goes on with" in said.out + said.err
        assert "LORA, rank 4" in said.out + said.err


@pytest.mark.filterwarnings("error:.*is a no-op")
def test_going_on_from_a_checkpoint_is_looked_at_without_a_word_about_weights_that_are_not_there(
    folder: Path, capsys
) -> None:
    train = ["run", "train.yaml", "--training.optimizer=adamw", "--peft.lora_target_modules=[q_proj]"]
    assert main([*train, "--peft.lora_r=4", "--training.save_steps=1", "--training.output_dir=first"]) == 0
    on = [*train, "--training.resume_from_checkpoint=first/checkpoint-1", "--dry-run"]
    capsys.readouterr()
    assert main([*on, "--peft.lora_r=4"]) == 0
    assert "goes on from first/checkpoint-1" in capsys.readouterr().out
    assert main([*on, "--peft.lora_r=8"]) == 6
    assert "adapter_model.safetensors" in capsys.readouterr().err


SAVED = {
    "the base beside it": ("--peft.lora_r=32", "--peft.peft_save_mode=adapter_and_base_model"),
    "merged": ("--peft.lora_r=32", "--peft.peft_save_mode=merged"),
    "merged, in less precision": ("--peft.lora_r=32", "--peft.peft_save_mode=merged", "--model.torch_dtype_str=bf16"),
    "an adapter that begins in the model": ("--peft.lora_r=16", "--peft.lora_init_weights=pissa"),
}


@pytest.mark.parametrize("flags", SAVED.values(), ids=SAVED)
def test_checkpoints_hold_the_adapter_and_the_final_model_what_its_mode_says(
    folder: Path, flags: tuple[str, ...]
) -> None:
    arguments = ["--training.output_dir=out", "--training.optimizer=adamw", "--training.save_steps=1", *flags]
    found = estimated(Path("train.yaml"), "--training.max_steps=1", *arguments)
    assert main(["run", "train.yaml", "--training.max_steps=1", *arguments]) == 0
    final = sum(file.stat().st_size for file in Path("out").glob("*.safetensors"))
    checkpoint = [Path("out/checkpoint-1") / name for name in ("adapter_model.safetensors", "optimizer.safetensors")]
    assert found.bytes_of("final model") == pytest.approx(final, rel=0.05)
    assert found.bytes_of("checkpoints") == pytest.approx(sum(f.stat().st_size for f in checkpoint), rel=0.05)
