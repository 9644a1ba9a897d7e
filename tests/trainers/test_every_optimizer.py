"""Every optimizer through the real loop: it learns, and a run that goes on is the run that was never stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oumi_kernel.cli import main
from tests.optimizers.by_hand import CASES, Case, available, eager
from tests.trainers.conftest import Finished, Train
from tests.trainers.reference_trainer import evaluate
from tests.trainers.test_loop import oracle_rows

# Eight rows are one batch, so that each step has the same examples.
FLAGS = (
    "--training.max_steps=3",
    "--training.save_steps=2",
    "--training.eval_steps=2",
    "--training.learning_rate=0.005",
    "--training.weight_decay=0.1",
    "--training.sgd_momentum=0.5",
    "--model.model_kwargs.attention_dropout=0.1",
)
KWARGS = {
    "galore_adamw": "{rank: 4, update_proj_gap: 2, scale: 1}",
    "galore_adafactor": "{rank: 4, update_proj_gap: 2, scale: 1}",
    "apollo_adamw": "{rank: 4, update_proj_gap: 2}",
}
MORE = {
    "sgd": ("--training.learning_rate=0.5",),
    "schedule_free_sgd": ("--training.learning_rate=0.5",),
    "rmsprop": ("--training.learning_rate=5e-4",),
    "rmsprop_bnb": ("--training.learning_rate=5e-4",),
    "rmsprop_bnb_8bit": ("--training.learning_rate=5e-4",),
    "schedule_free_radam": ("--training.max_steps=8", "--training.learning_rate=0.02"),  # 5 steps only look
}
ALIASES = ("adamw_torch", "adamw_torch_fused")
LOOPED = {case.name: case for case in CASES if case.name not in ALIASES and not case.name.startswith("paged")}
"""By name; on a CPU nothing is paged, and the states of such are written and read as those of others."""


def flags_of(name: str) -> tuple[str, ...]:
    schedule = "constant" if name.startswith("schedule_free") else "linear"
    own = (f"--training.optimizer_kwargs={KWARGS[name]}",) if name in KWARGS else ()
    return (
        *FLAGS,
        f"--training.optimizer={name}",
        f"--training.lr_scheduler_type={schedule}",
        *own,
        *MORE.get(name, ()),
    )


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}: {key}": tensor
        for name in ("model", "optimizer", "random_state")
        for key, tensor in load_file(folder / f"{name}.safetensors").items()
    }


def others(folder: Path) -> list[object]:
    names = ("optimizer", "scheduler", "random_state", "trainer_state")
    return [json.loads((folder / f"{name}.json").read_text()) for name in names]


def lines(run: Finished) -> list[dict[str, object]]:
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in run.metrics]


@pytest.mark.parametrize("case", LOOPED.values(), ids=lambda case: case.name)
def test_it_learns_and_goes_on_to_the_bit(train: Train, tmp_path: Path, case: Case) -> None:
    available(case)
    flags = (*flags_of(case.name), "--training.try_resume_from_last_checkpoint")
    with eager():
        straight = train(*flags, rows=8, validation=2)
        shutil.copytree(straight.folder / "checkpoint-2", tmp_path / "resumed/checkpoint-2")
        resumed = train(*flags, rows=8, validation=2, name="resumed")
    losses = straight.figures("loss")
    assert losses[-1] < losses[0]
    end, again = (run.folder / f"checkpoint-{straight.summary.steps}" for run in (straight, resumed))
    found, expected = tensors(again), tensors(end)
    assert found.keys() == expected.keys()
    assert [key for key, tensor in expected.items() if not torch.equal(found[key], tensor)] == []
    assert others(again) == others(end)
    assert lines(resumed) == [line for line in lines(straight) if line["step"] > 2]
    final, kept = load_file(straight.folder / "model.safetensors"), load_file(end / "model.safetensors")
    assert all(torch.equal(final[key], tensor) for key, tensor in kept.items())


@pytest.mark.parametrize("name", LOOPED)
def test_a_dry_run_finds_that_a_run_can_go_on(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    available(LOOPED[name])
    flags = (*flags_of(name), "--training.max_steps=1", "--training.save_steps=1", "--training.eval_strategy=no")
    with eager():
        first = train(*flags, rows=8)
    goes_on = ["--dry-run", f"--training.resume_from_checkpoint={first.folder}/checkpoint-1"]
    again = ["run", str(first.folder / "run.json"), f"--training.output_dir={tmp_path}/again", *goes_on]
    assert main(again) == 0
    assert f"goes on from {first.folder}/checkpoint-1, step 1 of 1." in capsys.readouterr().out
    assert not (tmp_path / "again").exists()


def test_what_is_evaluated_saved_and_left_is_the_average_of_schedule_free_learning(
    train: Train, tmp_path: Path
) -> None:
    """Against the library's own formula for the average, from the two sequences that a checkpoint holds."""
    pytest.importorskip("schedulefree")
    run = train(*flags_of("schedule_free_adamw"), "--training.adam_beta1=0.8", rows=8, validation=2)
    saved = run.folder / "checkpoint-3"
    model, state = load_file(saved / "model.safetensors"), load_file(saved / "optimizer.safetensors")
    names = {key.partition(":")[0] for key in state}
    assert names <= set(model)
    for name in names:
        trained, fast = state[f"{name}:y"], state[f"{name}:z"]
        torch.testing.assert_close(model[name], trained + (1 - 1 / 0.8) * (fast - trained))
        assert not torch.equal(model[name], trained)
    left = run.model.state_dict()
    assert all(torch.equal(left[name], model[name]) for name in names)
    rows = oracle_rows(tmp_path, "validation.jsonl")
    assert run.figures("eval_loss")[-1] == pytest.approx(evaluate(run.model, rows), rel=1e-5)


def test_evaluating_changes_nothing_of_what_is_learned(train: Train) -> None:
    pytest.importorskip("schedulefree")
    flags = flags_of("schedule_free_adamw")
    often = train(*flags, rows=8, validation=2)
    never = train(*flags, "--training.eval_strategy=no", "--training.save_steps=0", rows=8, name="never")
    assert often.figures("loss") == never.figures("loss")
    left = load_file(never.folder / "model.safetensors")
    assert all(torch.equal(left[key], one) for key, one in load_file(often.folder / "model.safetensors").items())
