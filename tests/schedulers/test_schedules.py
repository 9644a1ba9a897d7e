"""Learning rates against closed forms at the start, in the middle, and at the end."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from oumi_kernel import ConfigError
from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text, split_overrides
from oumi_kernel.plugins import Kernel, resolve, scan
from tests.conftest import minimal_yaml

TOTAL, WARMUP = 50, 10
Form = Callable[[float], float]
VALIDATION = "  validation:\n    datasets:\n      - dataset_name: text_sft\n"


def schedule(name: str, *flags: str, validation: bool = False, optimizer: torch.optim.Optimizer | None = None):
    text = minimal_yaml(data=VALIDATION if validation else "")
    loaded = load_text(text, "c", split_overrides([f"--training.lr_scheduler_type={name}", *flags])[0])
    resolution = resolve(loaded, scan())
    resolution.raise_for_problems(strict=True)
    optimizer = optimizer or torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
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


def rise(step: float) -> float:
    return step / WARMUP


def fall(step: float) -> float:
    """Return the share of the steps after the warm-up that are over."""
    return (step - WARMUP) / (TOTAL - WARMUP)


def half_cosine(share: float, waves: float = 0.5) -> float:
    return (1 + math.cos(2 * math.pi * waves * share)) / 2


def above(least: float, factor: float) -> float:
    return least + (1 - least) * factor


def stable(step: int, end: int, form: Form) -> float:
    """Level until the last 20 steps before `end`, which fall to a tenth."""
    return above(0.1, form(min(1.0, max(0.0, (step - (end - 20)) / 20))))


CLOSED: list[tuple[str, dict[str, object], Form, Form]] = [
    ("linear", {}, rise, lambda s: 1 - fall(s)),
    ("cosine", {}, rise, lambda s: half_cosine(fall(s))),
    ("cosine", {"num_cycles": 1.5}, rise, lambda s: half_cosine(fall(s), 1.5)),
    ("constant", {}, rise, lambda s: 1.0),
    ("constant_with_warmup", {}, rise, lambda s: 1.0),
    ("polynomial", {}, rise, lambda s: above(1e-7, 1 - fall(s))),
    ("polynomial", {"power": 2, "lr_end": 0.1}, rise, lambda s: above(0.1, (1 - fall(s)) ** 2)),
    ("inverse_sqrt", {}, rise, lambda s: math.sqrt(WARMUP / s)),
    ("inverse_sqrt", {"timescale": 30}, rise, lambda s: math.sqrt(30 / (s + 30 - WARMUP))),
    ("cosine_with_restarts", {}, rise, lambda s: half_cosine(fall(s))),
    (
        "cosine_with_restarts",
        {"num_cycles": 3},
        rise,
        lambda s: 0.0 if s >= TOTAL else half_cosine(3 * fall(s) % 1),
    ),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}, rise, lambda s: above(0.1, half_cosine(fall(s)))),
    ("cosine_with_min_lr", {"min_lr": 0.2}, rise, lambda s: above(0.2, half_cosine(fall(s)))),
    # This one counts from 1: its first step already learns, and its last one has the least rate.
    (
        "cosine_warmup_with_min_lr",
        {"min_lr_rate": 0.1},
        lambda s: rise(s + 1),
        lambda s: above(0.1, half_cosine(fall(s + 1))),
    ),
    (
        "cosine_warmup_with_min_lr",
        {"min_lr": 0.1, "warmup_lr_rate": 0.4},
        lambda s: above(0.4, s / (WARMUP - 1)),
        lambda s: above(0.1, half_cosine(fall(s + 1))),
    ),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 20, "min_lr_ratio": 0.1},
        lambda s: above(0.1, rise(s)),
        lambda s: stable(s, TOTAL, half_cosine),
    ),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 20, "min_lr_ratio": 0.1, "decay_type": "linear", "warmup_type": "cosine"},
        lambda s: above(0.1, 1 - half_cosine(rise(s))),
        lambda s: stable(s, TOTAL, lambda share: 1 - share),
    ),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 20, "num_stable_steps": 15, "min_lr_ratio": 0.1, "decay_type": "1-sqrt"},
        lambda s: above(0.1, rise(s)),
        lambda s: stable(s, WARMUP + 15 + 20, lambda share: 1 - math.sqrt(share)),
    ),
]
ON_EVALUATION = {"reduce_lr_on_plateau", "greedy"}


def kwargs_flags(kwargs: dict[str, object]) -> list[str]:
    return [f"--training.lr_scheduler_kwargs.{key}={value}" for key, value in kwargs.items()]


@pytest.mark.parametrize(("name", "kwargs", "rising", "falling"), CLOSED)
def test_a_schedule_equals_its_closed_form_at_every_step(
    name: str, kwargs: dict[str, object], rising: Form, falling: Form
) -> None:
    found = rates(name, f"--training.warmup_steps={WARMUP}", *kwargs_flags(kwargs))
    ends = range(TOTAL, TOTAL + (name != "cosine_warmup_with_min_lr"))  # that one is at its end a step earlier
    steps = [*range(TOTAL), *ends]
    assert [found[s] for s in steps] == pytest.approx(
        [rising(s) if s < WARMUP else falling(s) for s in steps], abs=1e-9
    )


def test_every_schedule_has_a_closed_form_or_follows_the_evaluation_loss() -> None:
    assert {name for name, *_ in CLOSED} | ON_EVALUATION == set(scan().names("schedulers"))


@pytest.mark.parametrize("name", sorted({name for name, *_ in CLOSED} - {"inverse_sqrt", "cosine_warmup_with_min_lr"}))
def test_a_warmup_by_ratio_is_that_share_of_all_steps(name: str) -> None:
    kwargs = next(kwargs for known, kwargs, *_ in CLOSED if known == name)
    by_steps = rates(name, f"--training.warmup_steps={WARMUP}", *kwargs_flags(kwargs))
    assert rates(name, "--training.warmup_ratio=0.2", *kwargs_flags(kwargs)) == by_steps
    assert rates(name, "--training.warmup_ratio=0.191", *kwargs_flags(kwargs)) == by_steps  # rounded up
    without = rates(name, *kwargs_flags(kwargs))
    assert without[0] == pytest.approx(1.0)


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
    with pytest.raises(ConfigError, match="polynomial: 50 steps of warm-up leave none of the run's 50 to fall"):
        schedule("polynomial", "--training.warmup_ratio=1")
    rate_0 = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    with pytest.raises(ConfigError, match="cosine_with_min_lr: a learning_rate of 0 has no shares"):
        schedule("cosine_with_min_lr", "--training.lr_scheduler_kwargs.min_lr=0.1", optimizer=rate_0)
    with pytest.raises(ConfigError, match="10 steps of warm-up, 0 level and 45 of fall are more than the run's 50"):
        schedule(
            "warmup_stable_decay", "--training.lr_scheduler_kwargs.num_decay_steps=45", "--training.warmup_steps=10"
        )


def test_every_schedule_that_transformers_names_is_there() -> None:
    from transformers import SchedulerType

    assert {kind.value for kind in SchedulerType} <= set(scan().names("schedulers"))
