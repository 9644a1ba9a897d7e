"""Liger's fused kernels, put into the one model that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run

LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


class LigerParams(Params):
    """Which parts of the model Liger computes. Null: what Liger itself chooses for the type of model."""

    rope: bool | None = None
    """Rotary position embeddings."""

    rms_norm: bool | None = None
    """Root mean square norms."""

    layer_norm: bool | None = None
    """Layer norms."""

    swiglu: bool | None = None
    """Feed-forward layers that are gated by SiLU, experts of a mixture among them."""

    geglu: bool | None = None
    """Feed-forward layers that are gated by GELU in its tanh form."""

    relu_squared: bool | None = None
    """Activations that are a squared ReLU."""

    cross_entropy: bool = False
    """Only false: the trainer computes the loss itself."""

    fused_linear_cross_entropy: bool = False
    """Only false: the trainer computes head and loss together itself, in chunks and only where a label is."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Refuse a second computation of the loss."""
        for name in LOSSES:
            if getattr(self, name):
                yield name, "must be false: the trainer computes the loss itself, in chunks and only where a label is."


class Liger(Component):
    """Fused Triton kernels of liger-kernel (arXiv 2410.10989) for norms, rotary embeddings and feed-forward layers."""

    params_type = LigerParams
    requires = {"liger_kernel": "oumi-kernel[liger]"}

    @hookimpl
    def oumi_before_model(self, run: Run) -> None:
        """Refuse a machine on which the kernels do not run, and a type of model that Liger does not know."""
        from oumi_plugins.kernels._machine import check_machine

        check_machine(run)
        from oumi_plugins.kernels._liger import check_model_name  # takes seconds

        check_model_name(run)

    @hookimpl
    def oumi_apply_kernel(self, params: LigerParams, model: Any, run: Run) -> Any:
        """Return the model with its own modules changed; transformers and torch stay as they are."""
        from oumi_plugins.kernels._liger import put_into

        put_into(model, params, run)
        return model
