"""Before several processes train: who is where, whether they are to do the same, and whether they share a folder."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from uuid import uuid4

import msgspec
import torch

from oumi_kernel import ConfigError, Problem
from oumi_kernel.contracts import World
from oumi_kernel.preflight import differences
from oumi_plugins.strategies._group import Group, named

_log = logging.getLogger("oumi_plugins.strategies.preflight")
SHARING = 30.0
"""Seconds within which a file of one machine is to be seen by another; a network disk may remember that it was not."""
OUTPUT = "training.output_dir"


class Place(msgspec.Struct, frozen=True):
    """Where a process runs: its machine, what computes, and what tells that from others; empty on a CPU."""

    host: str
    device: str
    identity: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """What a process found: how it differs from the first, and whether it sees what that wrote."""

    differences: list[str]
    sees: bool


def preflight(group: Group, world: World, device: torch.device, facts: Mapping[str, str], folder: Path) -> None:
    """Show who is where, and refuse to train where the processes differ, share a GPU, or share no folder.

    Raises:
        ConfigError: They do; the same in every process.
        ProcessError: One of them does not come.
    """
    probe = folder / f".shared-{uuid4().hex}"
    if world.is_main:
        probe.touch()
        group.publish("facts", msgspec.json.encode(facts).decode())
        group.publish("probe", probe.name)
    try:
        texts = group.tell("preflight", msgspec.json.encode(place_of(device)).decode())
        places = [msgspec.json.decode(text, type=Place) for text in texts]
        _log.info("%s", rank_map(places))
        first = msgspec.json.decode(group.published("facts"), type=dict[str, str])
        verdict = Verdict(differences(first, facts, world.rank), _sees(folder, group.published("probe")))
        texts = group.tell("comparison", msgspec.json.encode(verdict).decode())
    finally:
        if world.is_main:
            probe.unlink(missing_ok=True)
    problems = judge(places, [msgspec.json.decode(text, type=Verdict) for text in texts], folder)
    if problems:
        raise ConfigError(problems)


def place_of(device: torch.device) -> Place:
    """Return where this process runs."""
    if device.type != "cuda":
        return Place(socket.gethostname(), "CPU")
    properties = torch.cuda.get_device_properties(device)
    return Place(socket.gethostname(), properties.name, str(properties.uuid))


def rank_map(places: Sequence[Place]) -> str:
    """Return which processes are where, a line for each machine."""
    lines: list[str] = []
    for (host, device), members in groupby(
        range(len(places)), key=lambda rank: (places[rank].host, places[rank].device)
    ):
        ranks = list(members)
        span = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}"
        lines.append(f"{'' if lines else 'processes':<11}{span} on {host}, {device}")
    return "\n".join(lines)


def judge(places: Sequence[Place], verdicts: Sequence[Verdict], folder: Path) -> list[Problem]:
    """Return everything for which the processes cannot train together."""
    problems = [
        Problem(code="processes-differ", path="", message=f"the processes would not train the same: {text}.")
        for verdict in verdicts
        for text in verdict.differences
    ]
    by_device: dict[Place, list[int]] = {}
    for rank, place in enumerate(places):
        if place.identity:
            by_device.setdefault(place, []).append(rank)
    for place, ranks in by_device.items():
        if len(ranks) > 1:
            message = f"{named(ranks)} share one GPU of {place.host}, {place.device}."
            hint = "Start one process for each GPU, and let each see its own, or all of them."
            problems.append(Problem(code="shared-device", path="", message=message, hint=hint))
    blind = [rank for rank, verdict in enumerate(verdicts) if not verdict.sees]
    if blind:
        hosts = ", ".join(dict.fromkeys(places[rank].host for rank in blind))
        message = f"{named(blind)} on {hosts} cannot see what process 0 on {places[0].host} writes into {folder}."
        hint = "Every process writes into checkpoints: give a folder that all machines share, by the same path."
        problems.append(Problem(code="folder-not-shared", path=OUTPUT, message=message, hint=hint))
    return problems


def _sees(folder: Path, name: str) -> bool:
    """Return whether a file is there; a network disk answers from the folder's list, not from what it remembers."""
    ends = time.monotonic() + SHARING
    while not (folder.is_dir() and any(path.name == name for path in folder.iterdir())):
        if time.monotonic() > ends:
            return False
        time.sleep(0.2)
    return True
