"""Whole runs: the rates that are logged are those of the schedule, and the steps that are promised are done."""

from __future__ import annotations

import re

import pytest

from tests.schedulers.test_schedules import CLOSED, TOTAL, WARMUP, Form, kwargs_flags
from tests.trainers.conftest import Finished, Train

STILL = ("--training.max_grad_norm=1e-9", "--training.learning_rate=1", "--training.per_device_train_batch_size=1")


@pytest.mark.parametrize(("name", "kwargs", "rising", "falling"), {form[0]: form for form in CLOSED}.values())
def test_the_rate_of_every_step_of_a_run_equals_the_closed_form(
    train: Train, name: str, kwargs: dict[str, object], rising: Form, falling: Form
) -> None:
    flags = [f"--training.lr_scheduler_type={name}", f"--training.max_steps={TOTAL}", *kwargs_flags(kwargs)]
    run = train(*STILL, *flags, f"--training.warmup_steps={WARMUP}", rows=1)
    expected = [rising(step) if step < WARMUP else falling(step) for step in range(TOTAL)]
    assert run.figures("learning_rate") == pytest.approx(expected, abs=1e-9)
    assert [entry["step"] for entry in run.metrics] == [*range(1, TOTAL + 1)]


def promised(run: Finished) -> list[int]:
    """Return the numbers of steps that the headers of a folder's runs print."""
    text = (run.folder / "logs/rank_0.log").read_text()
    return [int(number.replace(",", "")) for number in re.findall(r"^steps +([\d,]+) of", text, re.MULTILINE)]


EPOCHS = "--training.max_steps=-1"


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "flags", "steps"),
    [
        (8, 2, 2, (EPOCHS, "--training.num_train_epochs=1"), 2),
        (8, 2, 2, (EPOCHS, "--training.num_train_epochs=3"), 6),
        (7, 1, 4, (EPOCHS, "--training.num_train_epochs=1"), 2),  # the last window holds 3 rows
        (7, 2, 1, (EPOCHS, "--training.num_train_epochs=2"), 8),  # the last batch holds 1
        (9, 2, 2, (EPOCHS, "--training.num_train_epochs=2"), 6),  # a window of a batch of 1
        (8, 2, 1, (EPOCHS, "--training.num_train_epochs=0.5"), 2),
        (8, 2, 1, (EPOCHS, "--training.num_train_epochs=1.5"), 6),
        (8, 2, 1, (EPOCHS, "--training.num_train_epochs=0.3"), 2),  # begun steps are done
        (5, 2, 3, (EPOCHS, "--training.num_train_epochs=0.1"), 1),
        (10, 1, 1, (EPOCHS, "--training.num_train_epochs=0.7"), 7),  # 0.7 * 10 is more than 7 in floating point
        (8, 2, 1, ("--training.max_steps=5", "--training.num_train_epochs=1"), 5),  # max_steps wins
        (8, 2, 1, ("--training.max_steps=1", "--training.num_train_epochs=9"), 1),
        (3, 8, 4, (EPOCHS, "--training.num_train_epochs=2"), 2),  # less rows than a batch
    ],
)
def test_as_many_steps_are_done_as_the_header_prints(
    train: Train, rows: int, batch: int, accumulation: int, flags: tuple[str, ...], steps: int
) -> None:
    size = (
        f"--training.per_device_train_batch_size={batch}",
        f"--training.gradient_accumulation_steps={accumulation}",
    )
    run = train(*size, "--training.lr_scheduler_type=linear", *flags, rows=rows)
    assert promised(run) == [steps]
    assert run.summary.steps == steps
    assert [entry["step"] for entry in run.metrics] == [*range(1, steps + 1)]
    assert run.figures("learning_rate") == pytest.approx([0.01 * (1 - step / steps) for step in range(steps)])


def test_a_run_that_goes_on_prints_all_steps_and_does_those_that_are_left(train: Train) -> None:
    flags = ("--training.lr_scheduler_type=cosine", "--training.warmup_steps=2", "--training.max_steps=7")
    straight = train(*flags, name="straight")
    stopped = train(*flags, "--training.save_steps=4")
    resumed = train(*flags, f"--training.resume_from_checkpoint={stopped.folder}/checkpoint-4")
    assert promised(resumed) == [7, 7]
    assert "going on from step 4 of 7" in (resumed.folder / "logs/rank_0.log").read_text()
    assert resumed.summary.steps == 7
    assert resumed.figures("learning_rate") == straight.figures("learning_rate")
