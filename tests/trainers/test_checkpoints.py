"""What a checkpoint promises beyond going on: which are kept, which are refused, and that nothing in them executes."""

from __future__ import annotations

import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from oumi_kernel import CheckpointError, OutOfMemoryError
from oumi_kernel.completeness import incompleteness
from oumi_kernel.contracts import World
from oumi_plugins.trainers._manifest import checkpoints_in, seal
from oumi_plugins.trainers._order import OrderedBatches, epoch_order
from oumi_plugins.trainers._random_state import load_random_state, save_random_state
from oumi_plugins.trainers.memory import memory_errors
from tests.trainers.conftest import Train


def test_the_order_is_a_permutation_that_follows_from_seed_and_epoch_alone() -> None:
    assert sorted(epoch_order(50, 42, 0)) == list(range(50))
    assert epoch_order(50, 42, 3) == epoch_order(50, 42, 3)
    others = [epoch_order(50, 42, 1), epoch_order(50, 43, 0), epoch_order(50, 42, 2)]
    assert all(other != epoch_order(50, 42, 0) for other in others)


def test_an_epoch_that_goes_on_has_the_batches_that_are_left() -> None:
    whole = OrderedBatches([1] * 10, 3, seed=1, world=World())
    whole.go_to(2, 0)
    left = OrderedBatches([1] * 10, 3, seed=1, world=World())
    left.go_to(2, 6)
    assert [len(batch) for batch in whole] == [3, 3, 3, 1]
    assert list(left) == list(whole)[2:]
    assert len(left) == 2


def test_random_state_comes_back_for_python_numpy_and_torch(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.normal()), float(torch.rand(()))

    draw()
    np.random.normal()  # leaves a second normal number cached
    save_random_state(tmp_path, rank=0)
    expected = [draw() for _ in range(3)]
    draw()
    load_random_state(tmp_path, rank=0)
    assert [draw() for _ in range(3)] == expected
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_only_what_the_manifest_vouches_for_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-3"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/weights").write_bytes(b"12345")
    (folder / "trainer_state.json").write_text("{}")
    assert incompleteness(folder) == "there is no manifest.json, so it was never completed"
    seal(folder)
    assert incompleteness(folder) == ""
    (folder / "sub/weights").write_bytes(b"12346")
    assert incompleteness(folder) == "sub/weights was changed after it was written"
    for text in ("", "[]", '{"files": {"trainer_state.json": 1}}', '{"files": 3}', "{}"):
        (folder / "manifest.json").write_text(text)
        assert incompleteness(folder).startswith("manifest.json cannot be read")
    assert incompleteness(tmp_path / "checkpoint-4") == "there is no such folder"


def test_checkpoints_are_ordered_by_number_and_unfinished_ones_are_none(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", ".tmp-checkpoint-11", "checkpoint-last", "checkpoint-12.bak"):
        (tmp_path / name).mkdir()
    assert [step for step, _ in checkpoints_in(tmp_path)] == [9, 10]


def test_the_newest_is_kept_also_beside_those_of_a_longer_earlier_run(train: Train, tmp_path: Path) -> None:
    earlier = tmp_path / "run/checkpoint-900"
    earlier.mkdir(parents=True)
    run = train("--training.save_steps=1", "--training.trainer_kwargs.save_total_limit=1")
    assert sorted(path.name for path in run.folder.glob("*checkpoint-*")) == ["checkpoint-3", "checkpoint-900"]


def test_a_checkpoint_of_an_earlier_run_with_the_same_number_is_replaced(train: Train, tmp_path: Path) -> None:
    stale = tmp_path / "run/checkpoint-3"
    stale.mkdir(parents=True)
    (stale / "stale").touch()
    run = train("--training.save_steps=3")
    assert incompleteness(run.folder / "checkpoint-3") == ""
    assert not (run.folder / "checkpoint-3/stale").exists()
    assert not list(run.folder.glob(".*checkpoint*"))


@pytest.mark.parametrize(
    ("flags", "rows", "message"),
    [
        (("--training.data_seed=1",), 24, "training.data_seed was 42, now 1"),
        ((), 23, "the number of training examples was 24, now 23"),
        (
            ("--data.train.datasets[0].shuffle=true", "--data.train.datasets[0].seed=1"),
            24,
            "the content of the training",
        ),
    ],
)
def test_within_an_epoch_another_order_is_refused(
    train: Train, flags: tuple[str, ...], rows: int, message: str
) -> None:
    run = train("--training.save_steps=2", name="first")
    resume = f"--training.resume_from_checkpoint={run.folder}/checkpoint-2"
    with pytest.raises(CheckpointError, match=rf"stands within an epoch: .*{message}"):
        train(resume, *flags, rows=rows)


def test_the_batch_size_may_change_anywhere_and_no_example_is_seen_twice(
    train: Train, caplog: pytest.LogCaptureFixture
) -> None:
    run = train("--training.save_steps=2", name="first")
    resume = f"--training.resume_from_checkpoint={run.folder}/checkpoint-2"
    on = train(resume, "--training.max_steps=4", "--training.save_steps=4", "--training.per_device_train_batch_size=4")
    assert "the examples of a step was 8, now 4" in caplog.text
    state = json.loads((on.folder / "checkpoint-4/trainer_state.json").read_text())
    assert (state["epoch"], state["examples"]) == (1, 0)  # 24 = 2 x 8 + 2 x 4


def test_the_same_step_in_other_micro_batches_is_the_same_run(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    run = train("--training.save_steps=2", name="first")
    flags = ("--training.per_device_train_batch_size=4", "--training.gradient_accumulation_steps=2")
    train(f"--training.resume_from_checkpoint={run.folder}/checkpoint-2", *flags)
    assert "will not be that of one run" not in caplog.text


def test_the_state_of_another_optimizer_is_refused(train: Train) -> None:
    run = train("--training.save_steps=2", "--training.optimizer=adamw", name="first")
    with pytest.raises(CheckpointError, match="is that of AdamW"):
        train(f"--training.resume_from_checkpoint={run.folder}/checkpoint-2", "--training.optimizer=adam")


def test_optimizer_state_is_kept_by_the_names_of_parameters(train: Train) -> None:
    from safetensors.torch import load_file

    run = train("--training.save_steps=2", "--training.optimizer=adamw")
    found = load_file(run.folder / "checkpoint-2/optimizer.safetensors")
    names = {name for name, _ in run.model.named_parameters()}
    assert {key.rpartition(":")[0] for key in found} == names
    assert all(tensor.dtype == torch.float32 for tensor in found.values())


@pytest.mark.parametrize("name", ["adafactor", "sgd", "adamw_torch_fused"])
def test_every_kind_of_optimizer_goes_on_with_the_same_bits(train: Train, name: str) -> None:
    flags = (f"--training.optimizer={name}", "--training.sgd_momentum=0.9", "--training.max_steps=5")
    straight = train(*flags, name="straight")
    train(*flags, "--training.save_steps=2", name="stopped")
    resume = f"--training.resume_from_checkpoint={straight.folder.parent}/stopped/checkpoint-2"
    resumed = train(*flags, resume)
    expected = dict(straight.model.named_parameters())
    assert all(torch.equal(parameter, expected[key]) for key, parameter in resumed.model.named_parameters())


def test_a_schedule_that_follows_the_loss_goes_on_where_it_was(train: Train) -> None:
    flags = (
        "--training.lr_scheduler_type=reduce_lr_on_plateau",
        "--training.lr_scheduler_kwargs.patience=0",
        "--training.lr_scheduler_kwargs.threshold=0.5",
        "--training.eval_steps=1",
        "--training.max_steps=5",
    )
    straight = train(*flags, name="straight", validation=4)
    train(*flags, "--training.save_steps=3", name="stopped", validation=4)
    resume = f"--training.resume_from_checkpoint={straight.folder.parent}/stopped/checkpoint-3"
    resumed = train(*flags, resume, validation=4)
    rates = straight.figures("learning_rate")
    assert len(set(rates)) > 2
    assert resumed.figures("learning_rate") == rates[3:]


def test_resuming_a_run_that_is_done_does_nothing_and_leaves_the_model(train: Train) -> None:
    run = train("--training.save_steps=3")
    again = train("--training.try_resume_from_last_checkpoint")
    assert again.summary.steps == 3
    assert [entry["step"] for entry in again.metrics] == [1, 2, 3]
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True))


def test_a_damaged_newest_checkpoint_is_said_before_it_is_passed_over(train: Train, caplog) -> None:
    run = train("--training.save_steps=1")
    (run.folder / "checkpoint-3/manifest.json").unlink()
    with caplog.at_level(logging.WARNING, "oumi_plugins"):
        train("--training.try_resume_from_last_checkpoint")
    assert "checkpoint-3 is passed over: there is no manifest.json" in caplog.text


def test_save_epoch_saves_beside_save_steps(train: Train) -> None:
    run = train("--training.save_steps=2", "--training.save_epoch", "--training.max_steps=4")
    assert [step for step, _ in checkpoints_in(run.folder)] == [2, 3, 4]
    state = json.loads((run.folder / "checkpoint-3/trainer_state.json").read_text())
    assert (state["epoch"], state["examples"]) == (1, 0)


def test_a_loss_that_is_lost_between_log_entries_is_found_before_the_model_is_kept(train: Train) -> None:
    from oumi_kernel import NumericsError

    flags = ("--training.learning_rate=1e30", "--training.max_grad_norm=null", "--training.logging_strategy=no")
    with pytest.raises(NumericsError, match="at step 2"):
        train(*flags, "--training.max_steps=12")
    with pytest.raises(NumericsError, match="at step 2"):
        train(*flags, "--training.max_steps=12", "--training.save_steps=6", name="saved")


def test_memory_that_is_not_there_is_said_with_what_to_cut() -> None:
    with pytest.raises(OutOfMemoryError, match=r"Lower training\.per_device_train_batch_size"), memory_errors():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="mat1"), memory_errors():
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    held = {"weights": 2**30, "optimizer state": 2**31, "gradients": 0}
    said = r"Of it: optimizer state 2\.00 GiB, weights 1\.00 GiB\. The most is optimizer state: take an optimizer with"
    with pytest.raises(OutOfMemoryError, match=said), memory_errors(lambda: held):
        torch.empty(2**60, dtype=torch.uint8)


def test_a_model_that_the_device_has_no_room_for_is_said_to_be_too_large() -> None:
    from tests.strategies.test_single import strategy

    class TooLarge(torch.nn.Linear):
        def to(self, *place: object) -> torch.Tensor:
            return torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(OutOfMemoryError, match="The most is weights: load weights in 16 bits"):
        strategy().prepare(TooLarge(4096, 4096), lambda model: (None, None))


def test_at_the_end_of_an_epoch_other_examples_are_said(train: Train, caplog) -> None:
    run = train("--training.save_steps=3", name="first")
    resume = f"--training.resume_from_checkpoint={run.folder}/checkpoint-3"
    with caplog.at_level(logging.WARNING, "oumi_plugins"):
        train(resume, "--training.max_steps=5", "--data.train.train_target=all_tokens")
    assert "the content of the training examples was" in caplog.text


def test_a_run_goes_on_from_what_was_written_last_not_from_an_earlier_runs_higher_steps(
    train: Train, tmp_path: Path, caplog
) -> None:
    train("--training.save_steps=3", "--training.max_steps=6")
    train("--training.save_steps=2", "--training.max_steps=3", "--training.save_final_model=false", rows=30)
    shutil.rmtree(tmp_path / "run" / "checkpoint-3")  # as if killed after step 2
    with caplog.at_level(logging.INFO, "oumi_plugins"):
        train("--training.try_resume_from_last_checkpoint", "--training.max_steps=3", rows=30)
    assert "going on from step 2 of 3" in caplog.text
