"""AdamW of bitsandbytes: a state of 8 bits, or one that is paged to the host's memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from oumi_kernel import Component, hookimpl
from oumi_kernel.component import NoParams
from oumi_kernel.contracts import Run
from oumi_plugins.optimizers.adam import adam_settings
from oumi_plugins.optimizers.unserved import NOT_IN_PARTS
from oumi_plugins.optimizers.without_effect import NOT_SGD


class AdamW8bit(Component):
    """AdamW with a state of 8 bits (arXiv 2110.02861), as bitsandbytes.optim.AdamW8bit.

    Norms, biases, embeddings and tensors of less than 4,096 elements keep a state of 32 bits.
    """

    requires = {"bitsandbytes": "oumi-kernel[quant]"}
    without_effect = NOT_SGD
    unserved = NOT_IN_PARTS
    kind: ClassVar[str] = "AdamW8bit"
    whole: ClassVar[str] = "AdamW32bit"

    @hookimpl
    def oumi_build_optimizer(self, params: NoParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer."""
        from oumi_plugins.optimizers._bitsandbytes import build

        return build(self.kind, self.whole, groups, adam_settings(run))


class PagedAdamW8bit(AdamW8bit):
    """AdamW with a state of 8 bits that moves to the host while the GPU is short of memory; on a CPU not paged."""

    kind, whole = "PagedAdamW8bit", "PagedAdamW32bit"


class PagedAdamW32bit(AdamW8bit):
    """AdamW with a state of 32 bits that moves to the host while the GPU is short of memory; on a CPU not paged."""

    kind, whole = "PagedAdamW32bit", "PagedAdamW32bit"
