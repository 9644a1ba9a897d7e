"""One process: seeds, precision, clipping, and the norm that is reported."""

from __future__ import annotations

import copy
import math
import random
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text
from oumi_plugins.strategies._cpu import is_glibc
from oumi_plugins.strategies._single import SingleStrategy
from oumi_plugins.strategies._stepping import step_flagged
from tests.conftest import minimal_yaml


def strategy(training: str = "  seed: 7\n") -> SingleStrategy:
    loaded = load_text(minimal_yaml(training=training), "c")
    return SingleStrategy(Run(config=loaded.config, folder=loaded.folder))


def prepared(strategy: SingleStrategy, learning_rate: float = 1.0) -> torch.nn.Linear:
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)

    def build(model: torch.nn.Module) -> tuple[object, object]:
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    return strategy.prepare(model, build).model


@pytest.mark.parametrize(("limit", "moved"), [(None, 5.0), (10.0, 5.0), (1.0, 1.0), (0.5, 0.5)])
def test_the_norm_is_that_before_clipping_and_the_step_that_after(limit: float | None, moved: float) -> None:
    how = strategy()
    model = prepared(how)
    how.backward((model(torch.tensor([[3.0, 4.0]], device=how.device))).sum())
    assert float(how.step(limit)) == pytest.approx(5.0)
    assert float(model.weight.detach().norm()) == pytest.approx(moved, rel=1e-5)
    assert model.weight.grad is None


def test_gradients_of_micro_batches_add_up() -> None:
    how = strategy()
    model = prepared(how)
    for part in ([3.0, 0.0], [0.0, 4.0]):
        with how.backward_context(last=False), how.forward_context():
            loss = model(torch.tensor([part], device=how.device)).sum()
        how.backward(loss)
    assert float(how.step(None)) == pytest.approx(5.0)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_step_that_is_not_finite_moves_the_schedule_alone(bad: float, where: str) -> None:
    how = strategy()
    model = prepared(how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    how.prepare(model, lambda model: (optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)))
    norms = []
    for step in range(3):
        fails = step == 1
        factor = bad if fails and where == "gradient" else 1.0
        how.backward(model(torch.tensor([[3.0, 4.0]], device=how.device)).sum() * factor)
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
        norms.append(float(how.step(1.0, torch.tensor(bad if fails and where == "loss" else 2.0, device=how.device))))
        after = (model.state_dict(), optimizer.state_dict()["state"])
        assert same(before, after) == fails
        assert model.weight.grad is None
    assert [math.isfinite(norm) for norm in norms] == [True, False, True]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def same(left, right) -> bool:
    """Compare trees of tensors."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return all(same(a, b) for a, b in zip(left, right, strict=True)) if isinstance(left, tuple) else left == right


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_a_fused_optimizer_decides_by_the_flag_itself(kind) -> None:
    """What an accelerator does, where nobody may look at the flag."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([weight], lr=0.1, fused=True)
    reference = torch.nn.Parameter(torch.ones(3))
    expected = kind([reference], lr=0.1)
    for bad in (True, False, True, False):  # the first step of all is one that is not taken
        weight.grad = torch.full((3,), torch.nan if bad else 0.5)
        step_flagged(torch.tensor(bad), optimizer)
        if not bad:
            reference.grad = torch.full((3,), 0.5)
            expected.step()
    torch.testing.assert_close(weight, reference)
    assert float(optimizer.state[weight]["step"]) == 2
    assert not hasattr(optimizer, "found_inf")


def test_an_overflow_in_fp16_lowers_the_scale_and_nothing_else() -> None:
    how = strategy()
    model = prepared(how)
    how._scaler = torch.amp.GradScaler(how.device.type, init_scale=8.0, growth_interval=1000)
    inputs = torch.tensor([[3.0, 4.0]], device=how.device)
    how.backward(model(inputs).sum() * 3e38)
    assert not math.isfinite(float(how.step(1.0, torch.ones((), device=how.device))))
    assert torch.equal(model.weight, torch.zeros_like(model.weight))
    assert how._scaler.get_scale() == 4.0
    how.backward(model(inputs).sum())
    assert float(how.step(1.0, torch.ones((), device=how.device))) == pytest.approx(5.0)
    assert float(model.weight.detach().norm()) == pytest.approx(1.0, rel=1e-5)
    assert how._scaler.get_scale() == 4.0


def test_a_seed_gives_the_same_numbers_everywhere() -> None:
    def numbers(seed: int) -> tuple[float, float, float]:
        strategy(f"  seed: {seed}\n").setup()
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert numbers(3) == numbers(3)
    assert all(a != b for a, b in zip(numbers(3), numbers(4), strict=True))


@pytest.mark.parametrize("key", ["use_deterministic", "full_determinism"])
def test_deterministic_algorithms_are_asked_for_and_not_left_on(key: str) -> None:
    strategy(f"  {key}: true\n").setup()
    assert torch.are_deterministic_algorithms_enabled()
    strategy().setup()
    assert not torch.are_deterministic_algorithms_enabled()


def test_bf16_computes_in_bf16_and_keeps_weights_in_float32() -> None:
    how = strategy("  mixed_precision_dtype: bf16\n")
    model = prepared(how)
    with how.forward_context():
        product = model(torch.ones(1, 2, device=how.device))
    assert product.dtype == torch.bfloat16
    assert model.weight.dtype == torch.float32
    with strategy().forward_context():
        assert model(torch.ones(1, 2, device=how.device)).dtype == torch.float32


class Converted(TorchDispatchMode):
    """Keeps sight of the weights of a layer, of 16 x 16, that are converted to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and result.shape == (16, 16) and result.dtype == torch.bfloat16:
            self.seen.append(weakref.ref(result.untyped_storage()))
        return result

    def alive(self) -> int:
        return sum(one() is not None for one in self.seen)


@pytest.mark.parametrize("again", [False, True])
def test_converted_weights_are_kept_for_the_backward_pass_alone(again: bool) -> None:
    how = strategy(f"  mixed_precision_dtype: bf16\n  enable_gradient_checkpointing: {str(again).lower()}\n")
    layers = [torch.nn.Linear(16, 16, device=how.device) for _ in range(6)]
    states = torch.ones(1, 16, device=how.device, requires_grad=True)
    with Converted() as converted, how.forward_context():
        for layer in layers:
            states = checkpoint(layer, states, use_reentrant=False) if again else layer(states)
        assert len(converted.seen) == 6
        assert converted.alive() == (0 if again else 6)
        states.sum().backward()
    assert len(converted.seen) == (12 if again else 6)
    assert all(layer.weight.grad is not None for layer in layers)


def test_batches_and_model_are_on_the_same_device() -> None:
    how = strategy()
    batch = how.place({"input_ids": torch.zeros(1, 2)})
    assert batch["input_ids"].device.type == prepared(how).weight.device.type == how.device.type


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about memory of the host")
@pytest.mark.parametrize(
    ("section", "keeps"), [("peft: {}", True), ("peft: {q_lora: true}", False), ("peft: {lora_r: 4}", False)]
)
def test_an_adapter_asks_for_little_memory_so_what_is_freed_is_given_back(section: str, keeps: bool) -> None:
    loaded = load_text(f"{minimal_yaml()}{section}\n", "c")
    how = SingleStrategy(Run(config=loaded.config, folder=loaded.folder))
    try:
        how.setup()
        assert how.keeps_freed_memory is (keeps and is_glibc())
    finally:
        how.close()
