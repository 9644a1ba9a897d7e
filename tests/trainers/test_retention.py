"""Which checkpoints stay: never too many, always the newest, and the best where there is room for two."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oumi_kernel import ConfigError
from oumi_kernel.completeness import incompleteness
from oumi_plugins.trainers._manifest import checkpoints_in
from oumi_plugins.trainers._retention import Best, better, expendable
from tests.trainers.conftest import Train

LOSSES = st.lists(st.one_of(st.none(), st.just(math.nan), st.floats(0, 3)), min_size=1, max_size=40)


@given(losses=LOSSES, cadence=st.tuples(st.integers(1, 7), st.integers(1, 7)), limit=st.integers(1, 5))
def test_whatever_the_cadence_the_limit_holds_and_the_newest_and_best_stay(losses, cadence, limit) -> None:
    save_every, evaluate_every = cadence
    there: list[int] = []
    known: dict[int, float] = {}
    best: Best | None = None
    for step, found in enumerate(losses, 1):
        if step % save_every:
            continue
        loss = found if step % evaluate_every == 0 else None
        there.append(step)
        if loss is not None and not math.isnan(loss):
            known[step] = loss
        best = better(best, step, loss)
        gone = expendable(there, step, best.step if best else None, limit)
        there = [at for at in there if at not in gone]
        lowest = min(known, key=lambda at: (known[at], at)) if known else None
        assert len(there) <= limit
        assert step in there
        assert (best.step if best else None) == lowest
        if limit >= 2 and lowest:
            assert lowest in there
        others = [at for at in range(save_every, step + 1, save_every) if at not in (step, lowest)]
        room = limit - len({step, lowest} & set(there))
        assert [at for at in there if at not in (step, lowest)] == others[len(others) - room :] or room >= len(others)


@given(steps=st.lists(st.integers(1, 99), unique=True), newest=st.integers(1, 99))
def test_without_a_limit_nothing_goes_and_what_is_beyond_the_newest_is_not_ours(steps, newest) -> None:
    assert expendable([*steps, newest], newest, None, None) == []
    assert all(step < newest for step in expendable([*steps, newest], newest, None, 1))


SCATTERED = (  # a rate at which the loss rises again
    "--training.max_steps=6",
    "--training.eval_steps=1",
    "--training.save_steps=1",
    "--training.learning_rate=0.3",
    "--training.max_grad_norm=null",
)
BEST = "--training.trainer_kwargs.load_best_model_at_end"


def evaluations(run) -> dict[int, float]:
    return {entry["step"]: entry["eval_loss"] for entry in run.metrics if "eval_loss" in entry}


@pytest.mark.parametrize("limit", [2])
def test_the_best_stays_and_its_weights_are_the_final_model(train: Train, limit: int) -> None:
    run = train(*SCATTERED, BEST, f"--training.trainer_kwargs.save_total_limit={limit}", validation=6)
    losses = evaluations(run)
    best = min(losses, key=lambda step: losses[step])
    assert 1 < best < 6  # else the test shows nothing
    kept = [step for step, _ in checkpoints_in(run.folder)]
    assert kept == sorted({best, *[step for step in (5, 6) if step != best][-(limit - 1) :]})
    from transformers import AutoModelForCausalLM

    expected = dict(AutoModelForCausalLM.from_pretrained(run.folder / f"checkpoint-{best}").named_parameters())
    assert all(torch.equal(found, expected[name]) for name, found in run.model.named_parameters())
    state = json.loads((run.folder / "checkpoint-6/trainer_state.json").read_text())
    assert state["best"] == {"step": best, "eval_loss": losses[best]}


def test_with_room_for_one_it_is_the_newest(train: Train) -> None:
    run = train(*SCATTERED, "--training.trainer_kwargs.save_total_limit=1", validation=6)
    assert [step for step, _ in checkpoints_in(run.folder)] == [6]


def test_a_run_that_goes_on_still_knows_the_best(train: Train, tmp_path: Path) -> None:
    limit = "--training.trainer_kwargs.save_total_limit=2"
    straight = train(*SCATTERED, BEST, limit, name="straight", validation=6)
    losses = evaluations(straight)
    best = min(losses, key=lambda step: losses[step])
    whole = train(*SCATTERED, validation=6)
    for step in range(best + 2, 7):  # as if it had ended two steps after the best
        (whole.folder / f"checkpoint-{step}/manifest.json").unlink()
    resumed = train(*SCATTERED, BEST, limit, "--training.try_resume_from_last_checkpoint", validation=6)
    assert evaluations(resumed) == losses
    assert not incompleteness(resumed.folder / f"checkpoint-{best}")
    expected = dict(straight.model.named_parameters())
    assert all(torch.equal(found, expected[name]) for name, found in resumed.model.named_parameters())


def test_a_checkpoint_at_the_last_step_knows_its_figure_also_where_no_evaluation_was_due(train: Train) -> None:
    run = train("--training.eval_steps=2", "--training.save_steps=2", validation=4)
    (state, loss) = json.loads((run.folder / "checkpoint-3/trainer_state.json").read_text()), evaluations(run)
    assert sorted(loss) == [2, 3]
    assert state["evaluated_at"] == 3
    assert state["best"]["eval_loss"] == min(loss.values())


@pytest.mark.parametrize(
    ("flags", "validation", "message"),
    [
        ((), 0, r"load_best_model_at_end: nothing is evaluated\."),
        (("--training.eval_strategy=no",), 4, r"load_best_model_at_end: nothing is evaluated\."),
        (("--training.eval_steps=2",), 4, r"no checkpoint is saved when an evaluation is done\. Set .*save_steps to"),
        (("--training.eval_strategy=epoch", "--training.save_steps=2"), 4, r"Set training\.save_epoch: true"),
        (("--training.eval_steps=2", "--training.save_steps=3"), 4, "save_steps 3 is no multiple of eval_steps 2"),
        (
            ("--training.eval_steps=2", "--training.save_steps=2", "--training.trainer_kwargs.save_total_limit=1"),
            4,
            r"save_total_limit: the best and the newest checkpoint are two",
        ),
    ],
)
def test_a_best_that_could_not_be_known_is_refused_before_anything_is_loaded(
    train: Train, tmp_path: Path, flags: tuple[str, ...], validation: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(*flags, BEST, validation=validation)
    assert not (tmp_path / "run/run.json").exists()
