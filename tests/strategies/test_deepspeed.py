"""DeepSpeed's ZeRO in two processes on the CPU: the result of one process, checkpoints for any number, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.strategies.forked import outcomes
from tests.strategies.materials import write_run

pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
pytestmark = pytest.mark.slow

STEPS = 6
DIVIDES_SMALL_WEIGHTS = "--deepspeed.stage3_param_persistence_threshold=10"
IMPORTED_ONCE = ("transformers", "oumi_plugins.strategies._deepspeed", "oumi_plugins.trainers._sft", "peft")


def write_files(folder: Path) -> None:
    """Write model, data and configuration: 61 rows of unequal length, 5 to evaluate on, AdamW, accumulation."""
    write_run(
        folder,
        max_steps=STEPS,
        optimizer="adamw_torch",
        adam_epsilon=0.01,  # a small one divides rounding errors of small gradients by their size
        learning_rate=0.01,
        weight_decay=0.1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=2,
        eval_strategy="steps",
        eval_steps=3,
        save_steps=3,
    )


def one(folder: Path, name: str, *flags: str) -> dict[str, Any]:
    """Return a run of one process without DeepSpeed, whose steps have as many examples as those of two."""
    output = f"--training.output_dir={folder / name}"
    together = "--training.per_device_train_batch_size=4"
    return {"config": str(folder / "train.yaml"), "flags": [output, together, *flags], "processes": 1}


def zero(folder: Path, name: str, stage: int, *flags: str) -> dict[str, Any]:
    """Return a run of two processes with DeepSpeed."""
    chosen = ["--deepspeed.enable_deepspeed=true", f"--deepspeed.zero_stage=ZERO_{stage}", DIVIDES_SMALL_WEIGHTS]
    output = f"--training.output_dir={folder / name}"
    return {"config": str(folder / "train.yaml"), "flags": [output, *chosen, *flags], "processes": 2}


def done(folder: Path, *runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Do runs one after another, and return what came of the first process of each."""
    found = outcomes(folder, runs, IMPORTED_ONCE, 550)
    assert not any(outcome["exit_code"] == 1 for outcome in found), found[0]["stderr"]
    return found


def figures(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def assert_same_result(left: Path, right: Path, weights: str = "model.safetensors") -> None:
    ours, theirs = load_file(left / weights), load_file(right / weights)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6, msg=f"{left.name}: {name}")
    mine = figures(left)
    for row, other in zip(mine, figures(right)[-len(mine) :], strict=True):
        assert row == pytest.approx(other, rel=2e-5), left.name


def test_every_stage_gives_the_result_of_one_process_and_goes_on_from_any_other(tmp_path: Path) -> None:
    write_files(tmp_path)
    onward = [f"--training.resume_from_checkpoint={tmp_path}/zero{stage}/checkpoint-3" for stage in (3, 1)]
    outcomes = done(
        tmp_path,
        one(tmp_path, "one"),
        *(zero(tmp_path, f"zero{stage}", stage) for stage in range(4)),
        zero(tmp_path, "from3to2", 2, onward[0]),
        zero(tmp_path, "from1to3", 3, onward[1]),
        one(tmp_path, "from3to1", onward[0]),
    )
    assert [outcome["error"] for outcome in outcomes] == [""] * 8
    assert "DeepSpeed" not in outcomes[0]["stderr"]
    for name in ("zero0", "zero1", "zero2", "zero3", "from3to2", "from1to3", "from3to1"):
        assert_same_result(tmp_path / name, tmp_path / "one")
    assert not [file for file in (tmp_path / "zero3").rglob("*") if file.suffix in (".pt", ".bin", ".pkl")]


def test_an_adapter_gives_the_result_of_one_process_and_goes_on(tmp_path: Path) -> None:
    write_files(tmp_path)
    peft = "--training.use_peft=true"
    onward = f"--training.resume_from_checkpoint={tmp_path}/zero2/checkpoint-3"
    outcomes = done(
        tmp_path,
        one(tmp_path, "one", peft),
        zero(tmp_path, "zero2", 2, peft),
        zero(tmp_path, "zero3", 3, peft),
        zero(tmp_path, "from2to3", 3, peft, onward),
    )
    assert [outcome["error"] for outcome in outcomes] == [""] * 4
    for name in ("zero2", "zero3", "from2to3"):
        assert_same_result(tmp_path / name, tmp_path / "one", "adapter_model.safetensors")


def test_offloading_and_sixteen_bits(tmp_path: Path) -> None:
    write_files(tmp_path)
    rests = ["--deepspeed.offload_optimizer.device=CPU", "--deepspeed.zero_force_ds_cpu_optimizer=false"]
    short = "--deepspeed.precision=BF16"
    outcomes = done(
        tmp_path,
        one(tmp_path, "one"),
        zero(tmp_path, "zero2", 2, *rests),
        zero(tmp_path, "zero3", 3, *rests, "--deepspeed.offload_param.device=CPU"),
        zero(tmp_path, "short1", 1, short),
        zero(tmp_path, "short3", 3, short),
        zero(tmp_path, "again", 3, short, f"--training.resume_from_checkpoint={tmp_path}/short3/checkpoint-3"),
    )
    assert [outcome["error"] for outcome in outcomes] == [""] * 6
    for name in ("zero2", "zero3"):
        assert_same_result(tmp_path / name, tmp_path / "one")
    assert_same_result(tmp_path / "again", tmp_path / "short3")  # which 16 bits alone could not give
    masters = load_file(tmp_path / "short1/checkpoint-6/master.safetensors")
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    last = [figures(tmp_path / name)[-1]["eval_loss"] for name in ("one", "short1", "short3")]
    assert last[1:] == [pytest.approx(last[0], rel=0.02)] * 2


@pytest.mark.parametrize("offload", [False, True])
def test_a_step_that_is_not_finite_is_not_taken(tmp_path: Path, offload: bool) -> None:
    write_files(tmp_path)
    rests = ["--deepspeed.offload_optimizer.device=CPU", "--deepspeed.zero_force_ds_cpu_optimizer=false"]
    runs = [zero(tmp_path, "none", stage, *(rests if offload else ())) for stage in range(int(offload), 4)]
    outcomes = done(tmp_path, *(run | {"processes": 1, "call": "tests.strategies.zero_steps:steps"} for run in runs))
    for outcome in outcomes:
        first, after_loss, after_gradient, after_good = outcome["weights"]
        assert first == after_loss == after_gradient
        moved = [abs(after - before) for before, after in zip(first, after_good, strict=True)]
        assert moved == [pytest.approx(0.1, abs=0.01)] * len(moved), "the first step of Adam is as long as its rate"
        assert [math.isnan(norm) for norm in outcome["norms"]] == [True, True, False]
