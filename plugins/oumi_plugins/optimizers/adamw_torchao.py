"""AdamW of torchao: a state of 8 or 4 bits, or in float8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from oumi_kernel import Component, ConfigError, Params, Problem, hookimpl
from oumi_kernel.contracts import Run
from oumi_plugins.optimizers.adam import adam_settings
from oumi_plugins.optimizers.unserved import NOT_IN_PARTS
from oumi_plugins.optimizers.without_effect import NOT_SGD


class TorchAOParams(Params):
    """Further parameters of torchao's AdamW."""

    bf16_stochastic_round: bool = False
    """Whether weights in bfloat16 are rounded up or down by chance, so that small updates are not lost."""


class TorchAOAdamW8bit(Component):
    """AdamW with a state of 8 bits, as torchao.optim.AdamW8bit; compiled at the first step.

    Tensors of less than 4,096 elements, or whose elements are no whole blocks of 256, keep the state of AdamW.
    """

    params_type = TorchAOParams
    requires = {"torchao": "oumi-kernel[optimizers]"}
    without_effect = NOT_SGD
    unserved = NOT_IN_PARTS
    kind: ClassVar[str] = "TorchAOAdamW8bit"

    @hookimpl
    def oumi_build_optimizer(self, params: TorchAOParams, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer.

        Raises:
            ConfigError: Weights would be rounded by chance, and differently in each process.
        """
        from oumi_plugins.optimizers import _torchao

        if params.bf16_stochastic_round and run.world.size > 1:
            message = "each process would round its copy of the weights by other numbers, and they would part."
            path = "training.optimizer_kwargs.bf16_stochastic_round"
            hint = "Leave it out, with weights in float32 (model.torch_dtype_str), or train in one process."
            raise ConfigError(Problem(code="not-served", path=path, message=message, hint=hint))

        kind = getattr(_torchao, self.kind)
        return kind(groups, **adam_settings(run), bf16_stochastic_round=params.bf16_stochastic_round)


class TorchAOAdamW4bit(TorchAOAdamW8bit):
    """AdamW with a state of 4 bits (arXiv 2309.01507), as torchao.optim.AdamW4bit; compiled at the first step.

    Tensors of less than 4,096 elements, or whose elements are no whole blocks of 128, keep the state of AdamW.
    """

    kind = "TorchAOAdamW4bit"


class TorchAOAdamWFp8(TorchAOAdamW8bit):
    """AdamW with a state in float8 (e4m3), as torchao.optim.AdamWFp8; compiled at the first step."""

    kind = "TorchAOAdamWFp8"
