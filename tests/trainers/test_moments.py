"""When things happen: log entries, evaluations, checkpoints, and being asked to stop while evaluating."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oumi_kernel import ConfigError, StopRequested
from tests.conftest import Install
from tests.trainers.conftest import Train

SEVEN = ("--training.max_steps=7",)  # three steps an epoch


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (("--training.logging_steps=3",), [3, 6]),
        (("--training.logging_steps=3", "--training.logging_first_step"), [1, 3, 6]),
        (("--training.logging_strategy=epoch",), [3, 6]),
        (("--training.logging_strategy=no",), []),
    ],
)
def test_figures_are_logged_when_they_are_due(train: Train, flags: tuple[str, ...], steps: list[int]) -> None:
    run = train(*SEVEN, *flags)
    assert [entry["step"] for entry in run.metrics] == steps
    assert run.summary.figures["loss"] > 0  # known at the end in any case


def test_a_logged_loss_is_the_mean_of_the_tokens_since_the_last_one(train: Train) -> None:
    """With batches of one row and no learning, a mean over steps would be another number."""
    still = ("--training.learning_rate=0", "--training.per_device_train_batch_size=1", "--training.max_steps=24")
    (whole,) = train(*still, "--training.logging_steps=24").figures("loss")
    each = train(*still, "--training.logging_steps=1", name="each").figures("loss")
    (one_step,) = train(
        "--training.learning_rate=0", "--training.gradient_accumulation_steps=3", "--training.max_steps=1", name="one"
    ).figures("loss")
    assert whole == pytest.approx(one_step, rel=1e-5)
    assert whole != pytest.approx(sum(each) / len(each), rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (("--training.eval_steps=3",), [3, 6, 7]),
        (("--training.eval_strategy=epoch",), [3, 6, 7]),
        (("--training.eval_steps=7",), [7]),
        (("--training.eval_strategy=no",), []),
    ],
)
def test_evaluations_are_done_when_due_and_once_at_the_end(
    train: Train, flags: tuple[str, ...], steps: list[int]
) -> None:
    run = train(*SEVEN, *flags, "--training.logging_strategy=no", validation=3)
    assert [entry["step"] for entry in run.metrics] == steps


def test_workers_that_live_on_between_epochs_bring_the_same_batches(train: Train) -> None:
    workers = ("--training.dataloader_num_workers=1", "--training.dataloader_persistent_workers")
    plain = train(*SEVEN, name="plain")
    run = train(*SEVEN, *workers)
    assert run.figures("loss") == plain.figures("loss")


def test_settings_of_gradient_checkpointing_are_checked_by_name(train: Train) -> None:
    on = "--training.enable_gradient_checkpointing"
    with pytest.raises(ConfigError, match=r"gradient_checkpointing_kwargs\.use_reentrent: .*It has use_reentrant"):
        train(on, "--training.gradient_checkpointing_kwargs.use_reentrent=true")
    reentrant = train(on, "--training.gradient_checkpointing_kwargs.use_reentrant=true", name="reentrant")
    assert reentrant.figures("loss") == pytest.approx(train(name="plain").figures("loss"), rel=1e-5)


STOPPING = """
import os, signal
from pathlib import Path

class StopOnce:
    def __init__(self, mark: str, at: int):
        self.mark, self.at = Path(mark), at
    def update(self, batch):
        seen = int(self.mark.read_text() or 0) + 1
        self.mark.write_text(str(seen))
        if seen == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
    def compute(self):
        return {"seen": 1.0}
"""


def test_asked_to_stop_while_evaluating_it_stops_and_evaluates_when_it_goes_on(
    train: Train, install: Install, tmp_path: Path
) -> None:
    install("oumi-stopping", "1.0", {"oumi.metrics": {"stop_once": "stopping:StopOnce"}}, stopping=STOPPING)
    (tmp_path / "mark").write_text("")
    flags = (
        *SEVEN,
        "--training.metrics_function=stop_once",
        f"--training.metrics_kwargs.mark={tmp_path / 'mark'}",
        "--training.eval_steps=2",
        "--training.per_device_eval_batch_size=1",
        "--training.lr_scheduler_type=reduce_lr_on_plateau",
        "--training.lr_scheduler_kwargs.patience=0",
        "--training.lr_scheduler_kwargs.threshold=0.5",
    )
    straight = train(*flags, "--training.metrics_kwargs.at=-1", name="straight", validation=3)
    (tmp_path / "mark").write_text("")
    with pytest.raises(StopRequested, match="asked to stop at step 4"):
        train(*flags, "--training.metrics_kwargs.at=5", validation=3)  # within the second evaluation
    resumed = train(
        *flags, "--training.metrics_kwargs.at=-1", "--training.try_resume_from_last_checkpoint", validation=3
    )
    assert [entry["step"] for entry in resumed.metrics if "eval_loss" in entry] == [2, 4, 6, 7]
    assert resumed.figures("learning_rate") == straight.figures("learning_rate")
    expected = dict(straight.model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in resumed.model.named_parameters())
