"""Muon for the matrices within the model, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import PositiveFloat
from oumi_plugins.optimizers.without_effect import NOT_SGD


class MuonParams(Params):
    """Parameters of Muon."""

    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.95
    """Decay of the average of gradients."""

    nesterov: bool = True
    """Whether to look ahead along the momentum."""

    ns_steps: Annotated[int, Meta(ge=1, le=99)] = 5
    """Newton-Schulz iterations by which an update is made orthogonal."""

    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """How the learning rate depends on a matrix's shape: so that updates are as large as those of AdamW, whose learning
    rates then serve, or as in the original Muon, whose learning rates are larger."""

    adamw_learning_rate: PositiveFloat | None = None
    """Learning rate of what AdamW trains. Null: `training.learning_rate`."""


class Muon(Component):
    """Muon (arXiv 2502.16982), as torch.optim.Muon, for matrices that are no embedding and no head, beside AdamW.

    Experts that are one tensor of three dimensions are trained by AdamW: Muon takes two.
    """

    params_type = MuonParams
    without_effect = NOT_SGD

    @hookimpl
    def oumi_build_optimizer(self, params: MuonParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer.

        Raises:
            ConfigError: No matrix trains.
        """
        from oumi_plugins.optimizers._muon import build

        return build(params, groups, run)
