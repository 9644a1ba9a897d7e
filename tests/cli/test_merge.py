"""`oumi merge` as a user meets it: what is printed, exit codes, and that help needs no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from oumi_kernel.cli import main
from oumi_kernel.cli.complete import candidates
from tests.cli.test_cli import imported, oumi
from tests.conftest import QUICKSTART


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Return the folder of an adapter that the library alone has saved."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model")
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_merging_says_how_far_adapter_and_merged_weights_are_apart(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(adapter), "--output", str(tmp_path / "merged")]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["adapter"] == f"{adapter} (LORA)"
    assert lines["base"] == f"{QUICKSTART / 'model'} (float32)"
    assert lines["written"] == str(tmp_path / "merged")
    found = re.fullmatch(r"merging moves them by up to (\S+); (\S+) is allowed", lines["difference"])
    assert found
    assert 0 < float(found[1]) < float(found[2]) < 3e-4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32


def test_what_cannot_be_merged_ends_with_2_and_no_traceback(adapter: Path, tmp_path: Path) -> None:
    whole = oumi("merge", str(QUICKSTART / "model"))
    assert (whole.returncode, whole.stdout) == (2, "")
    assert "holds a whole model and no adapter: there is nothing to merge" in whole.stderr
    taken = oumi("merge", str(adapter), "--output", str(tmp_path))
    assert (taken.returncode, "Traceback" in taken.stderr) == (2, False)


def test_a_base_that_is_not_found_is_asked_for(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "some/model"}))
    assert main(["merge", str(adapter)]) == 2
    message = capsys.readouterr().err
    assert "'some/model'" in message
    assert "--base MODEL" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_help_names_the_options_and_imports_no_torch() -> None:
    text = oumi("merge", "--help").stdout
    assert all(word in text for word in ("oumi merge RUN", "--output", "--base", "checkpoint"))
    assert imported("merge", "--help") == []
    assert imported("merge", str(QUICKSTART / "model")) == []


def test_shells_complete_the_command_and_its_options() -> None:
    assert "merge" in candidates([], "me")
    assert set(candidates(["merge"], "--")) == {"--help", "--output", "--base"}


def test_a_prompt_that_a_run_has_learned_is_no_weight_to_merge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--peft.peft_method=prompt_tuning", "--peft.peft_kwargs.num_virtual_tokens=2", "--training.max_steps=1")
    assert main(["run", str(QUICKSTART / "train.yaml"), *flags, f"--training.output_dir={tmp_path / 'out'}"]) == 0
    assert main(["merge", str(tmp_path / "out")]) == 2
    assert "there is nothing to merge" in capsys.readouterr().err
