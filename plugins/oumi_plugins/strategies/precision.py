"""Mixed precision: torch's autocast, as a configuration asks for it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from oumi_kernel.config import MixedPrecisionDtype, TrainingParams


def mixed_precision(training: TrainingParams, device: str) -> AbstractContextManager[Any]:
    """Return a context in which a kind of device computes in the number format that is asked for, if one is.

    Autocast keeps a weight that it has converted until its end, for a second use. Where layers are computed again, the
    converted weights of all of them would be there at once, so that each is converted when it is used.
    """
    import torch

    dtypes = {MixedPrecisionDtype.BF16: torch.bfloat16, MixedPrecisionDtype.FP16: torch.float16}
    dtype = dtypes.get(training.mixed_precision_dtype)
    if dtype is None:
        return nullcontext()
    again = training.enable_gradient_checkpointing and torch.is_grad_enabled()
    return torch.autocast(device, dtype, cache_enabled=not again)
