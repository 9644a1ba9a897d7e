"""One process on one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oumi_kernel import Component, hookimpl
from oumi_kernel.component import Combination
from oumi_kernel.contracts import Run, Strategy
from oumi_plugins.strategies.combinations import combinations_of


class Single(Component):
    """Trains in this process, on the GPU if there is one, else on the CPU."""

    without_effect = {
        "training.ddp_find_unused_parameters": "there is one process.",
        "training.nccl_default_timeout_minutes": "there is one process.",
    }

    @classmethod
    def combinations(cls) -> Sequence[Combination]:
        """Return what was tried with the strategy."""
        return combinations_of("single")

    @hookimpl
    def oumi_build_strategy(self, params: Any, run: Run) -> Strategy:
        """Return the strategy."""
        from oumi_plugins.strategies._single import SingleStrategy

        return SingleStrategy(run)
