"""A run that goes on is the run that was never stopped: bit by bit, sample by sample, line by line."""

from __future__ import annotations

import json
import logging
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oumi_kernel import CheckpointError, StopRequested
from oumi_plugins.trainers._manifest import checkpoints_in
from tests.conftest import Install
from tests.trainers.conftest import Finished, Train

WATCH = """
import hashlib, os, signal
from pathlib import Path
from oumi_kernel import Component, hookimpl

class Watch(Component):
    '''Writes down every batch that the model trains on, and stops the run after the steps that a file names.'''
    @hookimpl(wrapper=True)
    def oumi_build_model(self, params, tokenizer, arguments, run):
        model = yield
        def note(module, args, kwargs):
            if module.training:
                ids = kwargs["input_ids"].numpy().tobytes()
                with (run.output_dir / "batches").open("a") as file:
                    file.write(hashlib.sha256(ids).hexdigest() + "\\n")
        model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
        return model

    @hookimpl
    def oumi_step_end(self, run, record):
        stops = run.output_dir / "stops"
        if stops.exists() and str(record.step) in stops.read_text().split():
            os.kill(os.getpid(), signal.SIGTERM)
"""

# 26 rows are 7 batches, the last of 2 rows; 2 batches a step are 4 steps an epoch, the last of one batch.
FLAGS = (
    "--training.per_device_train_batch_size=4",
    "--training.gradient_accumulation_steps=2",
    "--training.max_steps=10",
    "--training.optimizer=adamw",
    "--training.lr_scheduler_type=cosine",
    "--training.warmup_steps=3",
    "--training.logging_steps=3",
    "--training.eval_steps=4",
    "--training.save_steps=100",
    "--training.learning_rate=0.005",
    "--model.model_kwargs.attention_dropout=0.2",
    "--training.try_resume_from_last_checkpoint",
)
WORKERS = ("--training.dataloader_num_workers=2", "--training.dataloader_persistent_workers")


def lines(run: Finished) -> list[dict[str, object]]:
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in run.metrics]


def assert_the_same(run: Finished, straight: Finished, step: int) -> None:
    found, expected = run.folder / f"checkpoint-{step}", straight.folder / f"checkpoint-{step}"
    for name in ("model", "optimizer", "random_state"):
        tensors, others = load_file(found / f"{name}.safetensors"), load_file(expected / f"{name}.safetensors")
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items()), name
    for name in ("random_state", "scheduler", "optimizer", "trainer_state"):
        assert json.loads((found / f"{name}.json").read_text()) == json.loads((expected / f"{name}.json").read_text())
    assert (run.folder / "batches").read_text() == (straight.folder / "batches").read_text()
    assert lines(run) == lines(straight)


@pytest.mark.slow
def test_stopped_anywhere_and_gone_on_it_ends_with_the_same_bits_batches_and_figures(
    train: Train, install: Install, tmp_path: Path
) -> None:
    install("oumi-watch", "1.0", {"oumi.plugins": {"watch": "watch:Watch"}}, watch=WATCH)
    straight = train(*FLAGS, name="straight", rows=26, validation=5)
    assert len(set((straight.folder / "batches").read_text().split())) == len(
        (straight.folder / "batches").read_text().split()
    )
    cases = {
        "within the first epoch": ((2,), ()),
        "within the second epoch": ((6,), ()),
        "at an epoch's end": ((4,), ()),
        "twice in an epoch": ((5, 7), ()),
        "with workers": ((2, 6), WORKERS),
    }
    for name, (stops, workers) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "stops").write_text(" ".join(map(str, stops)))
        for step in stops:
            with pytest.raises(StopRequested, match=f"asked to stop at step {step}"):
                train(*FLAGS, *workers, name=name, rows=26, validation=5)
        run = train(*FLAGS, *workers, name=name, rows=26, validation=5)
        assert [at for at, _ in checkpoints_in(run.folder)] == [*stops, 10], name
        assert_the_same(run, straight, 10)


def test_where_checkpoints_are_saved_the_last_step_has_one_also_after_going_on(train: Train, caplog) -> None:
    flags = ("--training.save_steps=2", "--training.max_steps=5", "--training.try_resume_from_last_checkpoint")
    run = train(*flags)
    assert [step for step, _ in checkpoints_in(run.folder)] == [2, 4, 5]
    (run.folder / "checkpoint-5/manifest.json").unlink()
    (run.folder / "model.safetensors").unlink()
    with caplog.at_level(logging.INFO, "oumi_plugins"):
        again = train(*flags)
    assert "going on from step 4 of 5" in caplog.text
    assert (again.folder / "checkpoint-5/manifest.json").exists()
    assert again.model


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (3, "nothing is left to train: the run ends at step 3, and the checkpoint is of step 3."),
        (2, "the run ends at step 2, and the checkpoint is of step 3. The model stays that of the checkpoint."),
    ],
)
def test_at_or_after_the_last_step_nothing_is_done_and_that_is_said(
    train: Train, caplog, steps: int, message: str
) -> None:
    flags = ("--training.save_steps=3", "--training.eval_steps=3")
    run = train(*flags, validation=3)
    before = run.metrics, (run.folder / "checkpoint-3/manifest.json").read_bytes(), dict(run.model.named_parameters())
    (run.folder / "model.safetensors").unlink()
    with caplog.at_level(logging.INFO, "oumi_plugins"):
        again = train(
            *flags, "--training.try_resume_from_last_checkpoint", f"--training.max_steps={steps}", validation=3
        )
    assert message in caplog.text
    assert again.summary.steps == 3
    assert (again.metrics, (run.folder / "checkpoint-3/manifest.json").read_bytes()) == before[:2]
    assert all(torch.equal(found, before[2][name]) for name, found in again.model.named_parameters())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--training.learning_rate=0.02", r"training\.learning_rate was 0\.01, now 0\.02"),
        ("--training.weight_decay=0.1", r"training\.weight_decay was 0\.0, now 0\.1"),
        ("--training.sgd_momentum=0.5", r"training\.sgd_momentum was 0\.0, now 0\.5"),
        ("--training.seed=7", r"training\.seed was 42, now 7"),
    ],
)
def test_what_would_have_no_effect_any_more_is_refused(train: Train, flag: str, message: str) -> None:
    folder = train("--training.save_steps=2", name="first").folder
    with pytest.raises(CheckpointError, match=rf"cannot go on from .*: {message}.*would have no effect"):
        train(f"--training.resume_from_checkpoint={folder}/checkpoint-2", flag)


def test_what_changes_the_rest_of_the_run_is_said_and_what_does_not_is_not(train: Train, caplog) -> None:
    folder = train("--training.save_steps=2", name="first").folder
    resume = f"--training.resume_from_checkpoint={folder}/checkpoint-2"
    with caplog.at_level(logging.WARNING, "oumi_plugins"):
        train(resume, "--training.save_steps=0", "--training.logging_steps=2", "--training.run_name=x")
    assert "was written" not in caplog.text
    with caplog.at_level(logging.WARNING, "oumi_plugins"):
        train(
            resume,
            "--training.max_steps=5",
            "--training.max_grad_norm=0.5",
            "--training.lr_scheduler_type=linear",
            "--data.train.mixture_strategy=all_exhausted",
        )
    for change in (
        "the number of steps was 3, now 5",
        "training.max_grad_norm was 1.0, now 0.5",
        "training.lr_scheduler_type was changed",
        "data.train was changed",
        "The result will not be that of one run.",
    ):
        assert change in caplog.text


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(train: Train) -> None:
    folder = train("--training.save_steps=2", name="first").folder
    there = r"checkpoint-9: there is no such folder\. In \S+first there are: checkpoint-2, checkpoint-3\."
    with pytest.raises(CheckpointError, match=there):
        train(f"--training.resume_from_checkpoint={folder}/checkpoint-9", name="second")
    with pytest.raises(CheckpointError, match=r"manifest\.json.* In \S+first there are: checkpoint-2, checkpoint-3\."):
        train(f"--training.resume_from_checkpoint={folder}", name="second")


@pytest.mark.parametrize(("schedule", "matters"), [("reduce_lr_on_plateau", True), ("constant", False)])
def test_when_to_evaluate_matters_where_the_learning_rate_follows(
    train: Train, schedule: str, matters: bool, caplog: pytest.LogCaptureFixture
) -> None:
    flags = (f"--training.lr_scheduler_type={schedule}", "--training.eval_steps=2", "--training.save_steps=2")
    folder = train(*flags, name="first", validation=3).folder
    resume = f"--training.resume_from_checkpoint={folder}/checkpoint-2"
    with caplog.at_level(logging.WARNING, "oumi_plugins"):
        train(resume, *flags, "--training.eval_steps=1", "--data.validation.datasets[0].sample_count=2", validation=3)
    assert ("training.eval_steps was 2, now 1" in caplog.text) is matters
    assert ("data.validation was changed" in caplog.text) is matters


def test_values_that_may_be_secret_are_not_written_into_a_checkpoint(train: Train) -> None:
    run = train("--training.save_steps=3", "--data.train.datasets[0].dataset_kwargs={}", "--training.run_name=hush")
    text = "".join(path.read_text() for path in (run.folder / "checkpoint-3").glob("*.json"))
    assert "hush" not in text
    assert str(run.folder.parent / "train.jsonl") not in text


class Planted:
    """What unpickling would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_in_a_checkpoint_is_neither_run_nor_opened(train: Train, tmp_path: Path) -> None:
    run = train("--training.save_steps=2", name="first")
    folder, mark = run.folder / "checkpoint-2", tmp_path / "executed"
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "training_args.bin", "scaler.pt")
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Planted(mark)))
    pickle.loads((folder / names[0]).read_bytes())  # noqa: S301 - it would do harm
    assert mark.exists()
    mark.unlink()
    opened: set[str] = set()
    watching = [True]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in ("open", "pickle.find_class"):
            opened.add(str(arguments[0]))

    sys.addaudithook(watch)
    resumed = train(f"--training.resume_from_checkpoint={folder}")
    watching.clear()
    assert resumed.summary.steps == 3
    assert not mark.exists()
    assert any(str(folder / "scheduler.json") == path for path in opened)
    assert not [path for path in opened if path.endswith(names)]


def test_a_pickle_in_the_place_of_the_weights_is_refused(train: Train, tmp_path: Path) -> None:
    """Also where the manifest vouches for it: weights are read from safetensors only."""
    from oumi_plugins.trainers._manifest import seal

    folder, mark = train("--training.save_steps=2", name="first").folder / "checkpoint-2", tmp_path / "executed"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing or cut short"):
        train(f"--training.resume_from_checkpoint={folder}")
    (folder / "manifest.json").unlink()
    seal(folder)
    with pytest.raises(CheckpointError, match="holds no readable model"):
        train(f"--training.resume_from_checkpoint={folder}", name="again")
    assert not mark.exists()
