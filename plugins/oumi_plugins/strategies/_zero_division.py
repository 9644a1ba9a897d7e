"""What ZeRO divides, as DeepSpeed's configuration says (see `_division` for the formulae)."""

# DeepSpeed is an extra, which need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from oumi_kernel.config.deepspeed import DeepSpeedPrecision
from oumi_kernel.contracts import World
from oumi_kernel.rehearsal import Division
from oumi_plugins.strategies._division import replicated, sizes_of, zero
from oumi_plugins.strategies._zero_settings import number_format

FORMATS = {DeepSpeedPrecision.BF16: "bfloat16", DeepSpeedPrecision.FP16: "float16"}
FLOAT32, HALF = 4, 2


def division_of(model: Any, settings: Mapping[str, Any], world: World) -> Division:
    """Return how weights, gradients and optimizer state are divided, and what processes send each other.

    Args:
        model: The model without weights.
        settings: DeepSpeed's configuration.
        world: The processes.
    """
    precision, options = number_format(settings), DeepSpeedZeroConfig(**settings["zero_optimization"])
    name = FORMATS[precision] if precision else ""
    (whole,) = sizes_of(model, (), name)
    stage = int(options.stage)
    if not stage:
        return replicated(whole, world)
    width = HALF if name else FLOAT32
    found = zero(
        stage,
        whole,
        world,
        settings["gradient_accumulation_steps"],
        bucket_bytes=width * options.reduce_bucket_size,
        live_bytes=width * options.max_live_parameters,
    )
    rests = {"weights"} if options.offload_param else set[str]()
    rests |= {"gradients", "optimizer state", "float32 copies"} if options.offload_optimizer else set()
    return msgspec.structs.replace(found, number_format=name, host=frozenset(rests))
