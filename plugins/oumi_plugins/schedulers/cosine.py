"""Along a cosine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt


class CosineParams(Params):
    """Parameters of `cosine`."""

    num_cycles: PositiveFloat = 0.5
    """Waves; 0.5 falls once to 0."""


class RestartsParams(Params):
    """Parameters of `cosine_with_restarts`."""

    num_cycles: PositiveInt = 1
    """Times that the learning rate falls to 0."""


class MinLrParams(Params):
    """Parameters of `cosine_with_min_lr`."""

    num_cycles: PositiveFloat = 0.5
    """Waves; 0.5 falls once to the least learning rate."""

    min_lr: NonNegativeFloat | None = None
    """The least learning rate. This, or `min_lr_rate`."""

    min_lr_rate: Fraction | None = None
    """The least learning rate, as a share of the highest."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Ask for exactly one least learning rate."""
        if (self.min_lr is None) == (self.min_lr_rate is None):
            yield "min_lr", "set min_lr or min_lr_rate, one of them."


class WarmupMinLrParams(MinLrParams):
    """Parameters of `cosine_warmup_with_min_lr`."""

    warmup_lr_rate: Fraction | None = None
    """The learning rate at the first step, as a share of the highest."""


class Cosine(Component):
    """Rises over the warm-up, then falls along a cosine."""

    params_type = CosineParams

    @hookimpl
    def oumi_build_scheduler(self, params: CosineParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule."""
        from oumi_plugins.schedulers._transformers import build

        return build("cosine", params, optimizer, total_steps, run)


class CosineWithRestarts(Component):
    """Falls along a cosine several times, from the top each time."""

    params_type = RestartsParams

    @hookimpl
    def oumi_build_scheduler(self, params: RestartsParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule."""
        from oumi_plugins.schedulers._transformers import build

        return build("cosine_with_restarts", params, optimizer, total_steps, run)


class CosineWithMinLr(Component):
    """Falls along a cosine to a least learning rate."""

    params_type = MinLrParams

    @hookimpl
    def oumi_build_scheduler(self, params: MinLrParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule."""
        from oumi_plugins.schedulers._transformers import build

        return build("cosine_with_min_lr", params, optimizer, total_steps, run)


class CosineWarmupWithMinLr(Component):
    """Falls along a cosine to a least learning rate, after a warm-up that need not start at 0."""

    params_type = WarmupMinLrParams

    @hookimpl
    def oumi_build_scheduler(self, params: WarmupMinLrParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule."""
        from oumi_plugins.schedulers._transformers import build

        return build("cosine_warmup_with_min_lr", params, optimizer, total_steps, run)
