"""Running out of memory, said so that the user knows what to cut: by a loop, and by a strategy that places a model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from oumi_kernel import OutOfMemoryError

_HOST = "allocate memory"
"""What torch's allocator of host memory says, in a plain `RuntimeError`."""
LESS = {
    "weights": "load weights in 16 bits (model.torch_dtype_str: bfloat16), train an adapter, or take a smaller model",
    "gradients": "train an adapter or freeze layers (model.freeze_layers), or set "
    "training.trainer_kwargs.optimizer_in_backward: true",
    "optimizer state": "take an optimizer with less state (training.optimizer: adafactor), train an adapter, or freeze "
    "layers (model.freeze_layers)",
    "activations and logits": "lower training.per_device_train_batch_size (and raise "
    "training.gradient_accumulation_steps), lower model.model_max_length, or set "
    "training.enable_gradient_checkpointing: true",
}
"""What takes memory -> how it takes less."""
ANY = LESS["activations and logits"]


@contextmanager
def memory_errors(held: Callable[[], Mapping[str, int]] | None = None) -> Generator[None]:
    """Turn torch's errors of the device's and the host's memory into ours.

    Args:
        held: Returns bytes by what they are for, named as in `LESS`; the largest is what the error says to cut.

    Raises:
        OutOfMemoryError: Memory ran out.
    """
    import torch

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
        raise OutOfMemoryError(f"out of memory: {first} {way_out(held() if held else {})}") from error


def way_out(held: Mapping[str, int]) -> str:
    """Return what takes how much, the largest first, and how that takes less."""
    known = sorted(((size, what) for what, size in held.items() if size), reverse=True)
    if not known:
        return f"{ANY[0].upper()}{ANY[1:]}."
    parts = ", ".join(f"{what} {size / 2**30:.2f} GiB" for size, what in known)
    return f"Of it: {parts}. The most is {known[0][1]}: {LESS[known[0][1]]}."


def held_by(model: Any, optimizer: Any) -> dict[str, int]:
    """Return what a step on a GPU holds: weights, gradients, optimizer state, and all else that was there at the peak.

    Nothing of a CPU, where what else was there is not known, and may be the most.

    Args:
        model: The model.
        optimizer: Its optimizer; before its first step it may have no state, which then is not part of what ran out.
    """
    import torch

    from oumi_plugins.strategies.shards import own_part

    if not torch.cuda.is_available():
        return {}
    parameters = list(model.parameters())
    gradients = [parameter for parameter in parameters if parameter.requires_grad]
    state = [t for values in optimizer.state.values() for t in values.values() if isinstance(t, torch.Tensor)]
    sizes = {"weights": parameters, "gradients": gradients, "optimizer state": state}
    parts = {what: [own_part(tensor) for tensor in tensors] for what, tensors in sizes.items()}
    held = {what: sum(t.numel() * t.element_size() for t in tensors) for what, tensors in parts.items()}
    return held | {"activations and logits": max(0, torch.cuda.max_memory_allocated() - sum(held.values()))}
