"""Running out of memory, said so that the user knows what to cut."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from oumi_kernel import OutOfMemoryError

_HOST = "allocate memory"
"""What torch's allocator of host memory says, in a plain `RuntimeError`."""


@contextmanager
def memory_errors() -> Generator[None]:
    """Turn torch's errors of the device's and the host's memory into ours.

    Raises:
        OutOfMemoryError: Memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (
            isinstance(error, RuntimeError)
            and not isinstance(error, torch.OutOfMemoryError)
            and _HOST not in str(error)
        ):
            raise
        first = (str(error).splitlines() or [""])[0]
        raise OutOfMemoryError(
            f"out of memory: {first} Lower training.per_device_train_batch_size (and raise "
            "training.gradient_accumulation_steps), lower model.model_max_length, or set "
            "training.enable_gradient_checkpointing: true."
        ) from error
