"""What follows from a configuration, computed where it is used."""

from __future__ import annotations

import math

from oumi_kernel.config.training import TrainingParams
from oumi_kernel.config.training_config import TrainingConfig

_SHORT_DTYPES = {
    "f64": "float64",
    "double": "float64",
    "f32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "half": "float16",
}


def dtype_name(name: str) -> str:
    """Return the full name of a number format."""
    return _SHORT_DTYPES.get(name.lower(), name.lower())


def peft_enabled(config: TrainingConfig, peft_section_given: bool) -> bool:
    """Return whether an adapter is trained: a section that is not empty says so, unless a key says no."""
    if (config.peft.peft_method or "").lower() == "none" or config.training.use_peft is False:
        return False
    return bool(config.training.use_peft or peft_section_given)


def warmup_steps(training: TrainingParams, total_steps: int) -> int:
    """Return the steps over which the learning rate rises; `warmup_steps` wins over `warmup_ratio`."""
    if training.warmup_steps is not None:
        return training.warmup_steps
    return math.ceil((training.warmup_ratio or 0.0) * total_steps)
