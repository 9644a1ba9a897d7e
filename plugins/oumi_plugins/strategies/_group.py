"""The processes of a run: they meet, exchange tensors, and leave together.

Meeting and leaving go through the store of whoever started the processes, not through the exchange itself: a process
that waits there hears a request to stop, and can say who is missing. The same store tells, after an exchange that did
not end in time, which processes never came to it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from oumi_kernel import ConfigError, ProcessError
from oumi_kernel.contracts import World
from oumi_kernel.launchers import meeting_point

_log = logging.getLogger("oumi_plugins.strategies.group")
TIMEOUT = timedelta(minutes=10)
"""How long one exchange may take where the configuration does not say."""
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others at the start and at the end, where some prepare data or write the model."""
NOTICE = 30.0
"""Seconds after which it says for whom it waits."""
PAUSE = 0.05
"""Seconds between two looks at who is there."""
FIRST = timedelta(seconds=60)
"""How long the first exchange may take, of a single number."""
CONNECTING = timedelta(seconds=5)
"""How long a process tries to reach the store before it looks whether it was asked to stop, and tries again."""
COMPLAINTS = 5.0
"""Seconds within which all processes that waited for another one have said so."""


class Group:
    """The processes of a run, as one of them sees them."""

    def __init__(self, world: World, device: torch.device, minutes: float | None) -> None:
        """Take who this is; `minutes` is how long to wait for the others in one exchange."""
        self._world, self._device = world, device
        self._timeout = timedelta(minutes=minutes) if minutes else TIMEOUT
        self._store: distributed.Store | None = None
        self._exchanges = 0

    def tell(self, place: str, text: str = "") -> list[str]:
        """Say that this process is at a place, with a text, wait until all are; return their texts by rank.

        A signal is heard meanwhile.

        Raises:
            ConfigError: The environment does not say where the processes meet, or two say that they are the same.
            ProcessError: Not all came in time.
        """
        try:
            return self._tell(place, text)
        except distributed.DistError as error:
            message = f"whoever keeps what the processes say to each other is gone, before all came to the {place}"
            raise ProcessError(f"{message}: {_first_line(error)}") from error

    def _tell(self, place: str, text: str = "") -> list[str]:
        store, world = self._reached(), self._world
        store.set(f"{place}/{world.rank}", text or "-")
        began, noticed = time.monotonic(), False
        while missing := self._missing_at(place):
            waited = time.monotonic() - began
            if waited > PATIENCE.total_seconds():
                raise ProcessError(f"{named(missing)} did not come to the {place} within {_shown(PATIENCE)}.")
            if waited > NOTICE and not noticed:
                _log.info("waiting at the %s for %s", place, named(missing))
                noticed = True
            time.sleep(PAUSE)
        return [said.decode() for said in store.multi_get([f"{place}/{rank}" for rank in range(world.size)])]

    def publish(self, name: str, text: str) -> None:
        """Leave a text for all processes, which is there when this one has come to its next place."""
        self._reached().set(name, text)

    def published(self, name: str) -> str:
        """Return a text that was left."""
        return self._reached().get(name).decode()

    def meet(self) -> None:
        """Wait for all processes, get ready to exchange tensors with them, and try it.

        Raises:
            ConfigError: The environment does not say where they meet.
            ProcessError: Not all came in time, or they cannot reach each other.
        """
        self.tell("start")
        try:
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if self._device.type == "cuda" else "gloo",
                store=distributed.PrefixStore("group", self._reached()),
                rank=self._world.rank,
                world_size=self._world.size,
                timeout=self._timeout,
            )
            for device in {torch.device("cpu"), self._device}:
                one = torch.ones(1, device=device)
                work = distributed.all_reduce(one, async_op=True)
                assert work is not None  # noqa: S101 - it is, where it was asked to be asynchronous
                work.wait(FIRST)
                if one.item() != self._world.size:
                    raise ProcessError(f"a first sum over processes is {one.item():g}, not {self._world.size}.")
        except RuntimeError as error:
            message = f"the processes found each other and cannot exchange a number: {_first_line(error)}."
            hint = (
                "Where a machine has several networks, name that between them: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME."
            )
            raise ProcessError(f"{message} {hint}") from error

    def sum(self, values: torch.Tensor, what: str) -> torch.Tensor:
        """Return the sum of a tensor over all processes; `what` it is, for whoever reads that one did not come."""
        total = values.clone()
        with self.exchange(what):
            distributed.all_reduce(total)
        return total

    @contextmanager
    def exchange(self, what: str) -> Generator[None]:
        """Name the processes that did not come to what is done meanwhile, if it does not end in time.

        Raises:
            ProcessError: Some did not, or ended.
        """
        self._exchanges += 1
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
                raise
            raise self._failed(what, time.monotonic() - began, error) from error

    def leave(self) -> None:
        """Wait until no process needs another one any more, and leave.

        Raises:
            ProcessError: One did not come to the end in time.
        """
        if self._store is None:
            return
        try:
            self._tell("end")
            # where the first process keeps the store it is the last to go
            if self._world.is_main:
                self._tell("exit")
            else:
                self._store.set(f"exit/{self._world.rank}", "-")
        except distributed.DistNetworkError:
            _log.warning("whoever started the processes is gone: process %d waits for nobody", self._world.rank)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        self._store = None

    def _reached(self) -> distributed.Store:
        """Return the store, which the launcher keeps, or else the first process."""
        if self._store is not None:
            return self._store
        host, port = meeting_point()
        is_master = self._world.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store, began = None, time.monotonic()
        while store is None:
            try:
                store = distributed.TCPStore(
                    host, port, is_master=is_master, timeout=CONNECTING, wait_for_workers=False, multi_tenant=True
                )
            except distributed.DistError as error:
                if is_master or time.monotonic() - began > PATIENCE.total_seconds():
                    message = f"the processes cannot meet at {host}:{port}: {_first_line(error)}."
                    raise ProcessError(f"{message} MASTER_ADDR and MASTER_PORT say where they do.") from error
        # processes that were started anew must not find what those before left
        self._store = distributed.PrefixStore(f"oumi/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._store.set_timeout(self._timeout)
        if self._store.add(f"taken/{self._world.rank}", 1) > 1:
            message = f"two processes that meet at {host}:{port} say that they are process {self._world.rank}."
            raise ConfigError(f"{message} Give each its own rank, and each run its own MASTER_PORT.")
        return self._store

    def _missing_at(self, place: str) -> list[int]:
        store = self._reached()
        if store.check([f"{place}/{rank}" for rank in range(self._world.size)]):
            return []
        return [rank for rank in range(self._world.size) if not store.check([f"{place}/{rank}"])]

    def _failed(self, what: str, seconds: float, error: RuntimeError) -> ProcessError:
        """Return who did not come to an exchange: whoever did says so at about the same time."""
        place = f"waited/{self._exchanges}"
        if self._store is None or seconds < self._timeout.total_seconds() / 2:
            return ProcessError(f"another process ended while {what} was exchanged: {_first_line(error)}")
        self._store.set(f"{place}/{self._world.rank}", "-")
        ends = time.monotonic() + COMPLAINTS
        while (missing := self._missing_at(place)) and time.monotonic() < ends:
            time.sleep(PAUSE)
        who = f"{named(missing)} did not come" if missing else "all came, and the connection is slow or broken"
        hint = "Where a step may take longer, raise training.nccl_default_timeout_minutes."
        return ProcessError(f"exchanging {what} did not end within {_shown(self._timeout)}: {who}. {hint}")


def device_of(world: World, count: int) -> torch.device:
    """Return the GPU of a process where torch sees `count`.

    Raises:
        ConfigError: There are more processes on this machine than GPUs.
    """
    if world.local_rank < count:
        return torch.device("cuda", world.local_rank)
    if count == 1:  # a launcher may show each process a GPU of its own; whether it does is known when all have met
        return torch.device("cuda", 0)
    message = f"process {world.rank} is number {world.local_rank} of its machine, from 0, and torch sees {count} GPUs."
    raise ConfigError(f"{message} Start at most one process for each GPU, or see CUDA_VISIBLE_DEVICES.")


def named(ranks: list[int]) -> str:
    """Return processes as a user reads them."""
    return f"process {ranks[0]}" if len(ranks) == 1 else f"processes {', '.join(map(str, ranks))}"


def _shown(time: timedelta) -> str:
    return f"{time.total_seconds() / 60:g} minutes"


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]
