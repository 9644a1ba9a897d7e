"""Data parallelism: every process has the whole model, and reads its share of each step's examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oumi_kernel import Component, hookimpl
from oumi_kernel.component import Combination
from oumi_kernel.contracts import Run, Strategy
from oumi_kernel.launch import Processes
from oumi_plugins.strategies.combinations import combinations_of


class DDP(Component):
    """Trains in several processes, each with a copy of the model; gradients are summed (torch's DDP)."""

    @classmethod
    def combinations(cls) -> Sequence[Combination]:
        """Return what was tried with the strategy."""
        return combinations_of("ddp")

    @hookimpl
    def oumi_launch(self, command: Sequence[str], processes: Processes) -> int:
        """Start the processes, and return the exit code of the first that failed, or 0."""
        from oumi_plugins.strategies._elastic import launch

        return launch(command, processes)

    @hookimpl
    def oumi_build_strategy(self, params: Any, run: Run) -> Strategy:
        """Return the strategy."""
        from oumi_plugins.strategies._ddp import DdpStrategy

        return DdpStrategy(run)
