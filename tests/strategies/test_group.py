"""How processes meet, compare, exchange and leave, and what is said where one does not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from oumi_kernel import ConfigError, ProcessError
from oumi_kernel.contracts import World
from oumi_kernel.preflight import differences
from oumi_plugins.strategies import _group, _preflight
from oumi_plugins.strategies._group import Group, device_of
from oumi_plugins.strategies._preflight import Place, Verdict, judge, preflight, rank_map
from tests.conftest import QUICKSTART

CPU = torch.device("cpu")
SCRIPT = """
import os, sys, time
import torch
from oumi_kernel import ProcessError
from oumi_kernel.contracts import World
from oumi_plugins.strategies._group import Group

rank, what = int(sys.argv[1]), sys.argv[2]
group = Group(World(rank=rank, local_rank=rank, size=2), torch.device("cpu"), 0.05)
group.meet()
if rank == 1 and what == "late":
    time.sleep(1.5)
elif rank == 1 and what == "sleeps":
    time.sleep(20)
elif rank == 1 and what == "dies":
    os._exit(9)
try:
    print(group.sum(torch.tensor([rank + 1]), "the test's numbers").item())
    group.leave()
    print("left")
except ProcessError as error:
    print(error)
    sys.stdout.flush()
    os._exit(8)
"""


@pytest.fixture(autouse=True)
def address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def outcomes(act: Callable[[Group, World], object], size: int = 2) -> list[object]:
    """Return what `act` returns or raises in each of some processes, which are threads here."""
    found: list[object] = [None] * size
    groups = [
        Group(World(rank=rank, size=size), CPU, None) for rank in range(size)
    ]  # they last: the first has the store

    def one(world: World) -> None:
        try:
            found[world.rank] = act(groups[world.rank], world)
        except (ConfigError, ProcessError) as error:
            found[world.rank] = error

    threads = [threading.Thread(target=one, args=(World(rank=rank, size=size),)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_what_processes_say_at_a_place_is_known_to_all_also_where_one_is_late() -> None:
    def act(group: Group, world: World) -> list[str]:
        time.sleep(0.4 * world.rank)
        return group.tell("here", f"I am {world.rank}")

    assert outcomes(act, 3) == [["I am 0", "I am 1", "I am 2"]] * 3


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_group, "PATIENCE", timedelta(seconds=0.6))
    found = outcomes(lambda group, world: world.rank == 1 or group.tell("start"), 3)
    assert str(found[0]) == str(found[2]) == "process 1 did not come to the start within 0.01 minutes."


def test_two_processes_of_one_rank_are_refused() -> None:
    first = Group(World(size=2), CPU, None)
    first.publish("name", "text")
    with pytest.raises(ConfigError, match=r"two processes that meet at 127.0.0.1:\d+ say that they are process 0\."):
        Group(World(size=2), CPU, None).publish("name", "text")


def compared(facts: list[Mapping[str, str]], folders: list[Path]) -> list[object]:
    return outcomes(lambda group, world: preflight(group, world, CPU, facts[world.rank], folders[world.rank]))


def test_processes_that_would_not_do_the_same_all_say_which_and_what(tmp_path: Path) -> None:
    facts = [{"training.seed": "1", "the version of torch": "2.13"}, {"training.seed": "2", "model.new": "true"}]
    one, other = compared(facts, [tmp_path, tmp_path])
    assert isinstance(one, ConfigError)
    assert str(one) == str(other)
    assert [problem.message for problem in one.problems] == [
        "the processes would not train the same: training.seed: 1 in process 0, 2 in process 1.",
        "the processes would not train the same: the version of torch: 2.13 in process 0, nothing in process 1.",
        "the processes would not train the same: model.new: nothing in process 0, true in process 1.",
    ]
    assert not list(tmp_path.iterdir())


def test_processes_that_do_the_same_in_one_folder_may_train(tmp_path: Path) -> None:
    assert compared([{"training.seed": "1"}] * 2, [tmp_path] * 2) == [None, None]


def test_a_folder_that_a_process_does_not_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_preflight, "SHARING", 0.3)
    found = compared([{}, {}], [tmp_path, tmp_path / "elsewhere"])
    for error in found:
        assert isinstance(error, ConfigError)
        assert error.problems[0].path == "training.output_dir"
        assert "process 1 on " in str(error)


def test_many_differences_are_counted() -> None:
    first = {f"key{number}": "a" for number in range(9)}
    assert differences(first, dict.fromkeys(first, "b"), 3)[-1] == "and 4 more in process 3"
    assert differences(first, first, 3) == []


def test_the_map_has_a_line_for_each_machine_and_a_shared_gpu_is_refused() -> None:
    places = [Place("a", "H100", "x"), Place("a", "H100", "y"), Place("b", "H100", "x"), Place("b", "H100", "x")]
    assert rank_map(places) == "processes  0 to 1 on a, H100\n           2 to 3 on b, H100"
    (problem,) = judge(places, [Verdict([], True)] * 4, Path("out"))
    assert problem.message == "processes 2, 3 share one GPU of b, H100."


def test_a_process_takes_the_gpu_of_its_number_or_the_only_one_that_it_sees() -> None:
    third = World(rank=6, local_rank=2, size=8)
    assert device_of(third, 4) == torch.device("cuda", 2)
    assert device_of(third, 1) == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"process 6 is number 2 of its machine, from 0, and torch sees 2 GPUs\."):
        device_of(third, 2)


def pair(what: str) -> list[tuple[int, str]]:
    """Return exit code and output of both of two processes."""
    command = [sys.executable, "-c", SCRIPT]
    both = [
        subprocess.Popen([*command, str(rank), what], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for rank in range(2)
    ]
    try:
        texts = [both[0].communicate(timeout=60)[0]]
        if what == "sleeps":
            both[1].kill()
        texts.append(both[1].communicate(timeout=60)[0])
    finally:
        for process in both:
            process.kill()
    return [(process.returncode, text) for process, text in zip(both, texts, strict=True)]


@pytest.mark.slow
def test_processes_exchange_and_leave_together_and_one_that_does_not_come_is_named() -> None:
    assert pair("late") == [(0, "3\nleft\n")] * 2
    code, text = pair("sleeps")[0]
    assert code == 8
    assert text.startswith("exchanging the test's numbers did not end within 0.05 minutes: process 1 did not come.")
    (code, text), (other, _) = pair("dies")
    assert (code, other) == (8, 9)
    assert text.startswith("another process ended while the test's numbers was exchanged: ")


@pytest.mark.slow
def test_a_process_that_waits_for_the_others_stops_at_once_when_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = ("--training.output_dir", str(tmp_path), "--training.enable_tensorboard=false")
    for rank in ("0", "1"):  # the second tries to reach the first
        monkeypatch.setenv("RANK", rank)
        process = subprocess.Popen(
            [sys.executable, "-m", "oumi_kernel", "run", str(QUICKSTART / "train.yaml"), *flags],
            stderr=subprocess.PIPE,
            text=True,
        )
        log = tmp_path / f"logs/rank_{rank}.log"
        ends = time.monotonic() + 60
        while not (log.exists() and " prepared, " in log.read_text()) and time.monotonic() < ends:
            time.sleep(0.1)
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGTERM)
        began = time.monotonic()
        _, text = process.communicate(timeout=60)
        assert process.returncode == 143, text
        assert time.monotonic() - began < 30
