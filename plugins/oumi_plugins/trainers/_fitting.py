"""What to cut where the estimate is more than there is: the largest part, and settings with which the run would fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from oumi_kernel.config import TrainingParams
from oumi_plugins.trainers.memory import way_out


def advice(
    held: dict[str, int], training: TrainingParams, peak_with: Callable[[TrainingParams], int | None], free: int
) -> list[str]:
    """Return what to say about an estimate that is more than what is free.

    Args:
        held: Bytes by what they are for (see `memory.LESS`).
        training: The settings.
        peak_with: Returns the peak with other settings; None where that is not known.
        free: Bytes that are free.
    """
    said = [way_out(held)]
    for change in _changes(training):
        peak = peak_with(msgspec.structs.replace(training, **change))
        if peak is not None and peak <= free:
            settings = ", ".join(f"training.{name}: {_yaml(value)}" for name, value in change.items())
            return [*said, f"it would fit with {settings}: {peak / 2**30:.2f} GiB."]
    return [*said, "neither gradient checkpointing nor a batch of one example is enough."]


def _changes(training: TrainingParams) -> Iterator[dict[str, Any]]:
    """Yield what changes no result, the cheapest first: the examples of a step stay the same."""
    again = {} if training.enable_gradient_checkpointing else {"enable_gradient_checkpointing": True}
    size = training.per_device_train_batch_size
    one = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": training.gradient_accumulation_steps * size,
    }
    yield from (
        change for change in (again, one if size > 1 else {}, again | one if again and size > 1 else {}) if change
    )


def _yaml(value: object) -> str:
    return str(value).lower()
