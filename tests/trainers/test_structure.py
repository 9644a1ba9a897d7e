"""What a run must not do: compute padding, wait for the device between log entries, keep what it evaluates."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainers.conftest import Train


class Waits(TorchDispatchMode):
    """Counts how often a value is read off the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [1, 8])
def test_the_model_reads_as_many_tokens_as_there_are_and_no_padding(train: Train, size: int) -> None:
    read: Counter[str] = Counter()

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, torch.nn.Embedding):
            read["trained" if torch.is_grad_enabled() else "evaluated"] += inputs[0].numel()

    handle = register_module_forward_pre_hook(count)
    try:
        run = train(f"--training.per_device_train_batch_size={size}")
    finally:
        handle.remove()
    assert read["trained"] == run.metrics[-1]["tokens"]


def test_logits_are_computed_at_supervised_positions_only(train: Train) -> None:
    from oumi_plugins.trainers import _cross_entropy

    seen: list[int] = []
    whole = _cross_entropy._chunk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cross_entropy, "_chunk", lambda logits, *rest: seen.append(len(logits)) or whole(logits, *rest))
        run = train("--training.max_steps=1")
    tokens = run.metrics[-1]["tokens"]
    assert 0 < sum(seen) < 0.8 * tokens


def test_settings_of_the_process_are_as_before_a_run(train: Train) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision, torch.are_deterministic_algorithms_enabled()
    train("--training.max_steps=1")
    assert (torch.backends.mkldnn.matmul.fp32_precision, torch.are_deterministic_algorithms_enabled()) == before
