"""Things of several axes of the table of combinations at once, drawn at random.

In two processes they have the losses of one, or they are refused, by the dry run too. A few draws are tried, and many
with `--exhaustive`.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from oumi_kernel import ConfigError, PluginError
from oumi_kernel.loading import split_overrides
from oumi_plugins.strategies.combinations import Row, rows
from tests.strategies.forked import IMPORTED_ONCE, outcomes
from tests.strategies.materials import write_run
from tests.strategies.test_combinations import (
    HERE,
    MISSING,
    STRATEGIES,
    TOLERANCES,
    flags,
    losses,
    rehearse,
)

pytestmark = pytest.mark.slow

TOO_SLOW = "schedule_free_radam"
"""It moves no weight in its first five steps, and an adapter that did not move is not saved."""
AXES: dict[str, list[Row]] = {}
for row in rows():
    if not row.needs_gpu and row.name != TOO_SLOW:
        AXES.setdefault(row.axis, []).append(row)
FEW, MANY = 2, 40
REFUSED = (ConfigError.exit_code, PluginError.exit_code)
Draw = list[Row]


def draws(count: int) -> list[Draw]:
    """Return lists of things of different axes that give no setting two values."""
    generator = random.Random(0)
    found: list[Draw] = []
    while len(found) < count:
        axes = generator.sample(list(AXES), generator.randint(2, len(AXES)))
        chosen = [generator.choice(AXES[axis]) for axis in axes]
        if len({setting.partition(": ")[0] for setting in settings(chosen)}) == len(settings(chosen)):
            found.append(chosen)
    return found


def settings(draw: Draw) -> tuple[str, ...]:
    return tuple(dict.fromkeys(setting for row in draw for setting in row.settings))


def train(folder: Path, strategy: str, more: tuple[str, ...], chosen: list[Draw], processes: int) -> list[Any]:
    """Train with each draw, and return what came of it."""
    runs = [
        {
            "config": str(folder / "train.yaml"),
            "flags": [*flags((*more, *settings(draw))), f"--training.output_dir={folder / strategy / str(number)}"],
            "processes": processes,
        }
        for number, draw in enumerate(chosen)
    ]
    modules = [*IMPORTED_ONCE, *(["deepspeed"] if strategy.startswith("ZERO") else [])]
    return outcomes(folder, runs, modules, seconds=3000)


@pytest.fixture(scope="module")
def chosen(request: pytest.FixtureRequest) -> list[Draw]:
    return draws(MANY if request.config.getoption("exhaustive") else FEW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, rows, and a configuration of two steps of four examples."""
    folder = tmp_path_factory.mktemp("several")
    training = {"max_steps": 2, "optimizer": "sgd", "learning_rate": 1e-3, "per_device_train_batch_size": 2}
    write_run(folder, rows=24, held_out=0, save_steps=0, **training)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path, chosen: list[Draw]) -> list[Any]:
    """Return what came of each draw in one process."""
    return train(folder, "single", ("training.per_device_train_batch_size: 4",), chosen, processes=1)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("strategy", [pytest.param(one, marks=[] if one in HERE else MISSING) for one in STRATEGIES])
def test_together_they_train_as_in_one_process_or_are_refused(
    strategy: str, folder: Path, alone: list[Any], chosen: list[Draw], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = train(folder, strategy, STRATEGIES[strategy], chosen, processes=2)
    wrong: dict[str, str] = {}
    for number, (draw, outcome) in enumerate(zip(chosen, found, strict=True)):
        label = ", ".join(f"{row.name} ({row.axis})" for row in draw)
        place = folder / strategy / str(number)
        said = refusal(strategy, draw)
        if outcome["exit_code"] in REFUSED:
            wrong |= {} if said else {label: f"the dry run passes, and the run says {outcome['error']}"}
        elif outcome["exit_code"]:
            wrong[label] = outcome["error"]
        elif said:
            wrong[label] = f"it trains, and the dry run says {said}"
        elif any(row.reason(strategy) for row in draw):
            wrong[label] = "it trains, and the table says that one of these is refused"
        elif not alone[number]["exit_code"]:
            tolerance = max((TOLERANCES.get(row.axis, 1e-5) for row in draw), default=1e-5)
            expected = losses(folder / "single" / str(number))
            if losses(place) != pytest.approx(expected, rel=tolerance):
                wrong[label] = f"losses {losses(place)}, and of one process {expected}"
        elif not all(map(math.isfinite, losses(place))) or len(losses(place)) != 2:
            wrong[label] = f"losses {losses(place)}"
    assert not wrong, "\n".join(f"{label}: {what}" for label, what in wrong.items())


def refusal(strategy: str, draw: Draw) -> str:
    """Return why a dry run refuses a draw; empty if it does not."""
    overrides, _ = split_overrides(flags((*settings(draw), *STRATEGIES[strategy], "training.output_dir: refused")))
    try:
        rehearse(overrides)
    except (ConfigError, PluginError) as error:
        return str(error)
    return ""
