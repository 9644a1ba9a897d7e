"""The estimate of one of several processes, against what two real ones take and exchange."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from oumi_kernel.cli.configuration import open_sound_config
from oumi_kernel.contracts import World
from oumi_kernel.dry_run import dry_run
from oumi_kernel.loading import split_overrides
from oumi_kernel.plugins import resolve
from oumi_kernel.rehearsal import Estimate
from tests.conftest import QUICKSTART
from tests.trainers.test_estimate import ON_A_CPU, Collected, configure, long_rows

pytestmark = [pytest.mark.slow, ON_A_CPU]

RUN = """
import json, math, sys
import torch
from oumi_kernel.cli.configuration import open_sound_config
from oumi_kernel.launch import world_from
from oumi_kernel.loading import split_overrides
from oumi_kernel.plugins import resolve
from oumi_kernel.run import run_training

overrides, _ = split_overrides(sys.argv[2:])
loaded, catalogue = open_sound_config(sys.argv[1], overrides)
world = world_from()
resolution = resolve(loaded, catalogue, world_size=world.size)
if world.is_main:  # without a profiler, which takes memory itself
    run_training(loaded, resolution, world)
    with open("/proc/self/status") as file:
        print(next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024)
    sys.exit()
with torch.profiler.profile(record_shapes=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
    run_training(loaded, resolution, world)
numbers = {}
for event in profile.events():
    if event.name.startswith("gloo:"):
        shapes = [shape for shape in event.input_shapes if shape]
        numbers[event.name] = numbers.get(event.name, 0) + sum(math.prod(shape) for shape in shapes[:1])
print(json.dumps(numbers))
"""


class Measured(NamedTuple):
    """The peak of the resident memory of the first process, and operation -> numbers that the second exchanged."""

    peak: int
    numbers: dict[str, int]


def measured(config: Path, *flags: str) -> Measured:
    """Return what two processes took and sent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", RUN, str(config), *flags]
    folder = config.parent
    started: list[subprocess.Popen[bytes]] = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        with (folder / f"out_{rank}").open("w") as out, (folder / f"errors_{rank}").open("w") as errors:
            started.append(subprocess.Popen(command, env=common | place, stdout=out, stderr=errors))
    try:
        codes = [process.wait(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0, 0], "\n".join((folder / f"errors_{rank}").read_text()[-2000:] for rank in range(2))
    peak, numbers = ((folder / f"out_{rank}").read_text().splitlines()[-1] for rank in range(2))
    return Measured(int(peak), json.loads(numbers))


def estimated(config: Path, *flags: str) -> Estimate:
    overrides, _ = split_overrides(flags)
    loaded, catalogue = open_sound_config(str(config), overrides)
    collected = Collected()
    dry_run(loaded, resolve(loaded, catalogue, world_size=2), World(size=2), 0, collected)
    return collected.estimate_of_run


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return what a process takes whose model is next to nothing."""
    config = configure(tmp_path_factory.mktemp("tiny"), QUICKSTART / "model", per_device_train_batch_size=1)
    return measured(config).peak - estimated(config).peak_bytes


STEPS, FLOAT32 = 2, 4


def test_two_copies_take_and_exchange_what_is_estimated(tmp_path: Path, libraries: int) -> None:
    config = long_rows(tmp_path, "full")
    found, real = estimated(config), measured(config)
    assert found.peak_bytes > 200 * 2**20
    assert found.peak_bytes == pytest.approx(real.peak - libraries, rel=0.2)
    (exchange,) = found.traffic  # of two processes, a ring sends what each puts in
    assert exchange.bytes == pytest.approx(real.numbers["gloo:all_reduce"] * FLOAT32 / STEPS, rel=0.01)


UNITS = ("--fsdp.enable_fsdp", "--fsdp.auto_wrap_policy=TRANSFORMER_BASED_WRAP")
STAGES = [("--deepspeed.enable_deepspeed", f"--deepspeed.zero_stage=ZERO_{stage}") for stage in range(4)]


@pytest.mark.parametrize(
    ("flags", "halves"),
    [
        (UNITS, {"weights", "gradients", "optimizer state"}),
        ((*UNITS, "--fsdp.cpu_offload", "--fsdp.mixed_precision=bf16"), {"weights", "gradients", "optimizer state"}),
        (STAGES[0], set()),
        (STAGES[1], {"optimizer state", "float32 copies"}),
        (STAGES[2], {"gradients", "optimizer state", "float32 copies"}),
        (STAGES[3], {"weights", "gradients", "optimizer state", "float32 copies"}),
    ],
    ids=["fsdp", "fsdp-offload", *(f"zero-{stage}" for stage in range(4))],
)
def test_a_dry_run_says_what_each_strategy_divides(tmp_path: Path, flags: tuple[str, ...], halves: set[str]) -> None:
    if "--deepspeed.enable_deepspeed" in flags:
        pytest.importorskip("deepspeed")
    found = estimated(configure(tmp_path, QUICKSTART / "model", per_device_train_batch_size=1), *flags)
    whole = 4 * found.parameters
    expected = {"weights": whole, "gradients": whole, "optimizer state": 2 * whole, "float32 copies": whole}
    offloads = "--fsdp.cpu_offload" in flags
    shown = {amount.what: amount.bytes or 0 for amount in (found.host if offloads else found.memory)}
    for what in shown.keys() & expected.keys():
        assert shown[what] == pytest.approx(expected[what] / (2 if what in halves else 1), rel=0.01), what
    assert halves <= shown.keys()
    assert sum(exchange.bytes for exchange in found.traffic) > whole / 2
