"""Fully sharded data parallelism: weights, gradients and optimizer state are divided between processes."""

from __future__ import annotations

from collections.abc import Sequence

from oumi_kernel import Component, hookimpl
from oumi_kernel.component import Combination
from oumi_kernel.config.fsdp import FSDPParams
from oumi_kernel.contracts import Run, Strategy
from oumi_kernel.launch import Processes
from oumi_plugins.strategies.combinations import combinations_of


class FSDP(Component):
    """Trains in several processes that divide the model between them (torch's FSDP2, `fully_shard`)."""

    without_effect = {
        "fsdp.use_orig_params": "parameters always keep their own names and shapes in FSDP2.",
        "training.ddp_find_unused_parameters": "what a process did not use counts there with a gradient of zero.",
    }

    @classmethod
    def combinations(cls) -> Sequence[Combination]:
        """Return what was tried with the strategy."""
        return combinations_of("fsdp")

    @hookimpl
    def oumi_launch(self, command: Sequence[str], processes: Processes) -> int:
        """Start the processes, and return the exit code of the first that failed, or 0."""
        from oumi_plugins.strategies._elastic import launch

        return launch(command, processes)

    @hookimpl
    def oumi_build_strategy(self, params: FSDPParams, run: Run) -> Strategy:
        """Return the strategy.

        Raises:
            ConfigError: The section asks for what FSDP2 or this machine cannot do.
        """
        from oumi_plugins.strategies._fsdp import FsdpStrategy

        return FsdpStrategy(params, run)
