"""Each cell of the table of combinations: two steps with the losses of one process, or a refusal in the dry run.

Of what trains one row in five is tried, and all with `--exhaustive`; of what is refused everything.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from oumi_kernel import ConfigError, PluginError
from oumi_kernel.cli.configuration import open_sound_config
from oumi_kernel.contracts import World
from oumi_kernel.dry_run import dry_run
from oumi_kernel.loading import split_overrides
from oumi_kernel.plugins import resolve
from oumi_plugins.strategies.combinations import Row, rows
from tests.strategies.forked import IMPORTED_ONCE, outcomes
from tests.strategies.materials import write_run
from tests.trainers.test_estimate import Collected

pytestmark = pytest.mark.slow

FSDP = ("fsdp.enable_fsdp: true", "fsdp.auto_wrap_policy: TRANSFORMER_BASED_WRAP")
DIVIDES_SMALL_WEIGHTS = "deepspeed.stage3_param_persistence_threshold: 10"
STRATEGIES: dict[str, tuple[str, ...]] = {
    "ddp": (),
    "fsdp": FSDP,
    **{
        f"ZERO_{stage}": (
            "deepspeed.enable_deepspeed: true",
            f"deepspeed.zero_stage: ZERO_{stage}",
            DIVIDES_SMALL_WEIGHTS,
        )
        for stage in range(4)
    },
}
HERE = [name for name in STRATEGIES if find_spec("deepspeed") or not name.startswith("ZERO")]
MISSING = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra deepspeed")
CELLS = [
    pytest.param(strategy, row, id=f"{strategy}-{row.axis}-{row.name}", marks=[] if strategy in HERE else MISSING)
    for strategy in STRATEGIES
    for row in rows()
]


TOLERANCES = {"precision": 5e-3, "optimizer": 1e-4}
"""Relative, of losses: bfloat16 rounds sums of other orders otherwise, and Adam divides rounding errors."""


def flags(settings: tuple[str, ...]) -> list[str]:
    return [f"--{key}={value}" for key, _, value in (setting.partition(": ") for setting in settings)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, rows, and a configuration of two steps of four examples."""
    folder = tmp_path_factory.mktemp("combinations")
    write_run(
        folder,
        rows=24,
        held_out=0,
        max_steps=2,
        optimizer="sgd",
        learning_rate=1e-3,
        per_device_train_batch_size=2,
        save_steps=0,
    )
    return folder


@pytest.fixture(scope="module")
def chosen(request: pytest.FixtureRequest) -> list[Row]:
    """Return the rows that are tried: all if that is asked for, else one in five."""
    return rows() if request.config.getoption("exhaustive") else rows()[1::5]


@pytest.fixture(scope="module")
def alone(folder: Path, chosen: list[Row]) -> Path:
    """Return the folder, in which one process has trained two steps with each thing that it can."""
    train(folder, "single", ("training.per_device_train_batch_size: 4",), chosen, processes=1)
    return folder


def train(folder: Path, strategy: str, settings: tuple[str, ...], chosen: list[Row], processes: int) -> None:
    """Train with each of the rows that the strategy trains with."""
    tried = trained(strategy, chosen)
    runs = [
        {
            "config": str(folder / "train.yaml"),
            "flags": [*flags((*settings, *row.settings)), f"--training.output_dir={folder / strategy / name(row)}"],
            "processes": processes,
        }
        for row in tried
    ]
    modules = [*IMPORTED_ONCE, *(["deepspeed"] if strategy.startswith("ZERO") else [])]
    found = outcomes(folder, runs, modules, seconds=3000)
    failed = {row.name: one["error"] for row, one in zip(tried, found, strict=True) if one["error"]}
    assert not failed, found[0]["stderr"][-3000:]


def trained(strategy: str, chosen: list[Row]) -> list[Row]:
    return [row for row in chosen if not row.reason(strategy)]


def name(row: Row) -> str:
    return re.sub(r"\W", "_", f"{row.axis}_{row.name}")


def rehearse(overrides: Any) -> None:
    loaded, catalogue = open_sound_config("train.yaml", overrides)
    dry_run(loaded, resolve(loaded, catalogue, world_size=2), World(size=2), 0, Collected())


def losses(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("strategy", [pytest.param(one, marks=[] if one in HERE else MISSING) for one in STRATEGIES])
def test_what_trains_has_the_losses_of_one_process(strategy: str, alone: Path, chosen: list[Row]) -> None:
    train(alone, strategy, STRATEGIES[strategy], chosen, processes=2)
    for row in trained(strategy, chosen):
        found, expected = (losses(alone / which / name(row)) for which in (strategy, "single"))
        assert len(found) == 2
        assert found == pytest.approx(expected, rel=TOLERANCES.get(row.axis, 1e-5)), row


@pytest.mark.parametrize(("strategy", "row"), [cell for cell in CELLS if cell.values[1].reason(cell.values[0])])
def test_what_is_refused_is_refused_in_the_dry_run(strategy: str, row: Row, folder: Path, monkeypatch) -> None:
    if row.needs_gpu and torch.cuda.is_available():
        pytest.skip("it is refused where there is no GPU")
    monkeypatch.chdir(folder)
    asked = flags((*row.settings, *STRATEGIES[strategy], f"training.output_dir: refused/{strategy}/{name(row)}"))
    overrides, rest = split_overrides(asked)
    assert not rest
    with pytest.raises((ConfigError, PluginError)) as caught:
        rehearse(overrides)
    assert row.reason(strategy) in str(caught.value)
