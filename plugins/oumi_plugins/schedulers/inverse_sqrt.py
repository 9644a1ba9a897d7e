"""Along the inverse square root of the steps."""

from __future__ import annotations

from typing import Any

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import PositiveInt


class InverseSqrtParams(Params):
    """Parameters of `inverse_sqrt`."""

    timescale: PositiveInt | None = None
    """Steps over which the learning rate falls to about 0.7 of its height. Null: the warm-up steps, or 10,000."""


class InverseSqrt(Component):
    """Rises over the warm-up, then falls along the inverse square root."""

    params_type = InverseSqrtParams

    @hookimpl
    def oumi_build_scheduler(self, params: InverseSqrtParams, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the schedule."""
        from oumi_plugins.schedulers._transformers import build

        return build("inverse_sqrt", params, optimizer, total_steps, run)
