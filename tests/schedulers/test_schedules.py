"""Learning rates against closed forms at the start, in the middle, and at the end."""

from __future__ import annotations

import math

import pytest
import torch

from oumi_kernel import ConfigError
from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text, split_overrides
from oumi_kernel.plugins import Kernel, resolve, scan
from tests.conftest import minimal_yaml

TOTAL, WARMUP = 100, 10
VALIDATION = "  validation:\n    datasets:\n      - dataset_name: text_sft\n"


def schedule(name: str, *flags: str, validation: bool = False):
    text = minimal_yaml(data=VALIDATION if validation else "")
    loaded = load_text(text, "c", split_overrides([f"--training.lr_scheduler_type={name}", *flags])[0])
    resolution = resolve(loaded, scan())
    resolution.raise_for_problems(strict=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    run = Run(config=loaded.config, folder=loaded.folder)
    return Kernel(resolution).build_scheduler(optimizer, TOTAL, run)


def rates(*arguments: str) -> list[float]:
    """Return the rate of each step, and the one after the last."""
    built, found = schedule(*arguments), []
    for _ in range(TOTAL + 1):
        found.append(built.get_last_lr()[0])
        built._schedule if hasattr(built, "_schedule") else built.optimizer.step()
        built.step()
    return found


def fall(step: int) -> float:
    return (step - WARMUP) / (TOTAL - WARMUP)


FORMS = {
    "linear": lambda s: 1 - fall(s),
    "cosine": lambda s: (1 + math.cos(math.pi * fall(s))) / 2,
    "constant": lambda s: 1.0,
    "constant_with_warmup": lambda s: 1.0,
    "polynomial": lambda s: (1 - 1e-7) * (1 - fall(s)) + 1e-7,
    "inverse_sqrt": lambda s: 1 / math.sqrt((s + 0) / WARMUP),
    "cosine_with_restarts": lambda s: 0.0 if s >= TOTAL else (1 + math.cos(math.pi * fall(s))) / 2,
}


@pytest.mark.parametrize("name", FORMS)
def test_a_schedule_rises_over_the_warmup_and_follows_its_closed_form(name: str) -> None:
    found = rates(name, f"--training.warmup_steps={WARMUP}")
    assert found[:WARMUP] == pytest.approx([step / WARMUP for step in range(WARMUP)])
    for step in (WARMUP, 37, 55, TOTAL - 1, TOTAL):
        assert found[step] == pytest.approx(FORMS[name](step), abs=1e-6), step


@pytest.mark.parametrize("name", ["cosine_with_min_lr", "cosine_warmup_with_min_lr"])
def test_a_least_learning_rate_is_reached_and_not_passed(name: str) -> None:
    found = rates(name, "--training.lr_scheduler_kwargs.min_lr_rate=0.1", f"--training.warmup_steps={WARMUP}")
    assert found[WARMUP] == pytest.approx(1.0, rel=1e-3)  # one of the two begins its fall half a step early
    assert found[TOTAL] == pytest.approx(0.1, rel=1e-2)
    assert min(found[WARMUP:]) >= 0.1 - 1e-9


def test_stable_decay_is_level_until_its_last_steps() -> None:
    flags = ("--training.lr_scheduler_kwargs.num_decay_steps=20", f"--training.warmup_steps={WARMUP}")
    found = rates("warmup_stable_decay", *flags)
    assert found[WARMUP:80] == [1.0] * 70
    assert found[TOTAL] == pytest.approx(0.0)


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_follows_the_loss_moves_when_it_is_observed_only(name: str) -> None:
    flags = ("--training.lr_scheduler_kwargs.patience=1", "--training.lr_scheduler_kwargs.factor=0.5")
    built = schedule(name, *flags, validation=True)
    for _ in range(5):
        built.step()
    assert built.get_last_lr() == [1.0]
    for _ in range(8):
        built.observe(3.0)
    assert built.get_last_lr()[0] < 1.0
    with pytest.raises(ConfigError, match="follows the evaluation loss, and nothing is evaluated"):
        schedule(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosine", "--training.lr_scheduler_kwargs.cycles=2"), "unknown key 'cycles'"),
        (("cosine_with_min_lr",), "set min_lr or min_lr_rate, one of them"),
        (("warmup_stable_decay",), "'num_decay_steps' is required here"),
        (("cosin",), "did you mean 'cosine'"),
        (("linear", "--training.lr_scheduler_kwargs.num_cycles=2"), "unknown key 'num_cycles'"),
    ],
)
def test_a_wrong_parameter_is_an_error(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schedule(*arguments)


def test_what_only_the_schedule_can_judge_is_an_error_of_the_configuration_too() -> None:
    with pytest.raises(ConfigError, match=r"lr_scheduler_kwargs: polynomial: lr_end .* must be smaller than"):
        schedule("polynomial", "--training.lr_scheduler_kwargs.lr_end=2")
    with pytest.raises(ConfigError, match="10 steps of warm-up, 0 level and 95 of fall are more than the run's 100"):
        schedule(
            "warmup_stable_decay", "--training.lr_scheduler_kwargs.num_decay_steps=95", "--training.warmup_steps=10"
        )


def test_every_schedule_that_transformers_names_is_there() -> None:
    from transformers import SchedulerType

    assert {kind.value for kind in SchedulerType} <= set(scan().names("schedulers"))
