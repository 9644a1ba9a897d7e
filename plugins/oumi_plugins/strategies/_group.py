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

_log = logging.getLogger("oumi_plugins.strategies.group")
TIMEOUT = timedelta(minutes=10)
"""How long one exchange may take where the configuration does not say."""
PATIENCE = timedelta(hours=2)
"""How long a process waits for the others at the start and at the end, where some prepare data or write the model."""
NOTICE = 30.0
"""Seconds after which it says for whom it waits."""
PAUSE = 0.05
"""Seconds between two looks at who is there."""
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

    def meet(self) -> None:
        """Wait for all processes, and get ready to exchange tensors with them.

        Raises:
            ConfigError: The environment does not say where they meet.
            ProcessError: Not all came in time.
        """
        # processes that were started anew must not find the addresses of those before
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = distributed.PrefixStore(f"oumi/{attempt}", self._reach_store())
        self._wait_for_all("start")
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if self._device.type == "cuda" else "gloo",
            store=distributed.PrefixStore("group", self._store),
            rank=self._world.rank,
            world_size=self._world.size,
            timeout=self._timeout,
        )

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
        self._wait_for_all("end")
        # where the first process keeps the store it is the last to go
        if self._world.is_main:
            self._wait_for_all("gone")
        else:
            self._store.set(f"gone/{self._world.rank}", "")
        distributed.destroy_process_group()
        self._store = None

    def _reach_store(self) -> distributed.TCPStore:
        """Return the store, which the launcher keeps, or else the first process."""
        host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
        if not host or not port.isdecimal():
            message = (
                "WORLD_SIZE is set and MASTER_ADDR or MASTER_PORT is not: start the processes with oumi run --nproc N."
            )
            raise ConfigError(message)
        kept_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return distributed.TCPStore(
            host,
            int(port),
            is_master=self._world.is_main and not kept_by_launcher,
            timeout=self._timeout,
            wait_for_workers=False,
            multi_tenant=True,
        )

    def _wait_for_all(self, place: str) -> None:
        """Say that this process is at a place, and wait until all are; a signal is heard meanwhile."""
        assert self._store is not None  # noqa: S101 - set by `meet`
        self._store.set(f"{place}/{self._world.rank}", "")
        began, noticed = time.monotonic(), False
        while missing := self._missing_at(place):
            waited = time.monotonic() - began
            if waited > PATIENCE.total_seconds():
                raise ProcessError(f"{_named(missing)} did not come to the {place} within {_shown(PATIENCE)}.")
            if waited > NOTICE and not noticed:
                _log.info("waiting at the %s for %s", place, _named(missing))
                noticed = True
            time.sleep(PAUSE)

    def _missing_at(self, place: str) -> list[int]:
        assert self._store is not None  # noqa: S101 - set by `meet`
        if self._store.check([f"{place}/{rank}" for rank in range(self._world.size)]):
            return []
        return [rank for rank in range(self._world.size) if not self._store.check([f"{place}/{rank}"])]

    def _failed(self, what: str, seconds: float, error: RuntimeError) -> ProcessError:
        """Return who did not come to an exchange: whoever did says so at about the same time."""
        place = f"waited/{self._exchanges}"
        if self._store is None or seconds < self._timeout.total_seconds() / 2:
            return ProcessError(f"another process ended while {what} was exchanged: {_first_line(error)}")
        self._store.set(f"{place}/{self._world.rank}", "")
        ends = time.monotonic() + COMPLAINTS
        while (missing := self._missing_at(place)) and time.monotonic() < ends:
            time.sleep(PAUSE)
        who = f"{_named(missing)} did not come" if missing else "all came, and the connection is slow or broken"
        hint = "Where a step may take longer, raise training.nccl_default_timeout_minutes."
        return ProcessError(f"exchanging {what} did not end within {_shown(self._timeout)}: {who}. {hint}")


def _named(ranks: list[int]) -> str:
    return f"process {ranks[0]}" if len(ranks) == 1 else f"processes {', '.join(map(str, ranks))}"


def _shown(time: timedelta) -> str:
    return f"{time.total_seconds() / 60:g} minutes"


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]
