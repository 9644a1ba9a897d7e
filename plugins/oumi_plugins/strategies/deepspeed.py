"""DeepSpeed's ZeRO: optimizer state, gradients and weights are divided between processes, or rest in host memory."""

from __future__ import annotations

from collections.abc import Sequence

from oumi_kernel import Component, hookimpl
from oumi_kernel.component import Combination
from oumi_kernel.config import DeepSpeedParams
from oumi_kernel.contracts import Run, Strategy
from oumi_kernel.launch import Processes
from oumi_plugins.strategies.combinations import combinations_of


class DeepSpeed(Component):
    """Trains with DeepSpeed's engine, ZeRO stages 0 to 3."""

    requires = {"deepspeed": "oumi-kernel[deepspeed]"}
    without_effect = {"training.ddp_find_unused_parameters": "DeepSpeed takes weights without a gradient as they are."}

    @classmethod
    def combinations(cls) -> Sequence[Combination]:
        """Return what was tried with the strategy."""
        return combinations_of("ZERO_0", "ZERO_1", "ZERO_2", "ZERO_3")

    @hookimpl
    def oumi_launch(self, command: Sequence[str], processes: Processes) -> int:
        """Start the processes, and return the exit code of the first that failed, or 0."""
        from oumi_plugins.strategies._elastic import launch

        return launch(command, processes)

    @hookimpl
    def oumi_build_strategy(self, params: DeepSpeedParams, run: Run) -> Strategy:
        """Return the strategy.

        Raises:
            ConfigError: The section, or the file that it names, asks for what this strategy or machine cannot do.
        """
        from oumi_plugins.strategies._deepspeed import DeepSpeedStrategy

        return DeepSpeedStrategy(params, run)
