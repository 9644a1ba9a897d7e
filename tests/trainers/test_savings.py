"""What needs less memory trains the same: recomputed activations, steps inside the backward pass."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from oumi_kernel import ConfigError, NumericsError
from oumi_plugins.trainers._recomputing import keep_products
from tests.conftest import QUICKSTART
from tests.trainers.conftest import Train

ON = "--training.enable_gradient_checkpointing"
KWARGS = "--training.trainer_kwargs"
SELECTIVE = f"{KWARGS}.gradient_checkpointing_mode=selective"
SECOND = f"{KWARGS}.gradient_checkpointing_every=2"
DROPOUT = "--model.model_kwargs.attention_dropout=0.3"
IN_BACKWARD = (f"{KWARGS}.optimizer_in_backward", "--training.max_grad_norm=null")
ADAMW = ("--training.optimizer=adamw", "--training.learning_rate=0.003", "--training.lr_scheduler_type=cosine")


def same(left: Path, right: Path) -> bool:
    one, other = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("attention", [None, "sdpa"])
@pytest.mark.parametrize("precision", ["none", "bf16"])
def test_what_is_computed_again_trains_to_the_same_bits_with_dropout(
    train: Train, attention: str | None, precision: str
) -> None:
    flags = [DROPOUT, f"--training.mixed_precision_dtype={precision}"]
    flags += [f"--model.attn_implementation={attention}"] if attention else []
    kept = train(*flags, name="kept")
    undropped = train(*flags[1:], name="undropped")
    assert not same(kept.folder, undropped.folder)
    for name, switches in {"full": (), "selective": (SELECTIVE,), "second": (SECOND,)}.items():
        again = train(*flags, ON, *switches, name=name)
        assert again.figures("loss") == kept.figures("loss"), name
        assert same(again.folder, kept.folder), name


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._opname] = self.counts.get(func._opname, 0) + 1
        return func(*args, **(kwargs or {}))


def operations(model: torch.nn.Module, every: int = 1, **options: Any) -> dict[str, int]:
    """Return the operations of a forward and a backward pass."""
    model = copy.deepcopy(model).train()
    if options:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options, every_n_layers=every)
    counted = Counted()
    with counted:
        model(input_ids=torch.arange(1, 40).unsqueeze(0), use_cache=False).logits.float().sum().backward()
    return counted.counts


def test_selective_computes_no_product_and_no_attention_twice_and_every_second_layer_half_as_much() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model", attn_implementation="sdpa")
    select = functools.partial(create_selective_checkpoint_contexts, keep_products)
    none = operations(model)
    full, half = (operations(model, every, use_reentrant=False) for every in (1, 2))
    selective = operations(model, use_reentrant=False, context_fn=select)
    fused = "_scaled_dot_product_flash_attention_for_cpu"
    layers = len(model.model.layers)
    assert full[fused] == 2 * none[fused] == 2 * layers
    assert half[fused] == none[fused] + layers / 2
    assert selective[fused] == none[fused]
    assert selective["mm"] == none["mm"] < half["mm"] < full["mm"]
    assert selective["silu"] == full["silu"] == 2 * none["silu"]


def test_attention_that_drops_is_computed_again() -> None:
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    states = (torch.ones(1, 1, 2, 4),) * 3
    assert keep_products(None, attention, *states) is CheckpointPolicy.MUST_SAVE
    assert keep_products(None, attention, *states, 0.1) is CheckpointPolicy.PREFER_RECOMPUTE
    assert keep_products(None, attention, *states, dropout_p=0.1) is CheckpointPolicy.PREFER_RECOMPUTE


def test_every_layer_of_an_adapter_gets_a_gradient_though_embeddings_are_frozen() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from oumi_kernel.config import TrainingParams
    from oumi_plugins.trainers._recomputing import recompute_activations
    from oumi_plugins.trainers.sft import SftParams

    def gradients(switches: SftParams | None, **kwargs: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model")
        model = get_peft_model(
            model, LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        ).train()
        if switches is not None:
            training = TrainingParams(enable_gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)
            recompute_activations(model, training, switches)
        model(input_ids=torch.arange(1, 40).unsqueeze(0), use_cache=False).logits.square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients(None)
    for switches, kwargs in (
        (SftParams(), {}),
        (SftParams(), {"use_reentrant": True}),
        (SftParams(gradient_checkpointing_mode="selective"), {}),
        (SftParams(gradient_checkpointing_every=2), {}),
    ):
        found = gradients(switches, **kwargs)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert gradient.abs().sum() > 0, name
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0)


def test_the_reentrant_kind_cannot_select(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"gradient_checkpointing_mode: the reentrant kind .* cannot select"):
        train(ON, SELECTIVE, "--training.gradient_checkpointing_kwargs.use_reentrant=true")


def test_a_switch_of_what_is_off_says_so(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(SELECTIVE, SECOND, "--training.max_steps=1")
    for name in ("mode", "every"):
        assert f"gradient_checkpointing_{name}: no effect while training.enable_gradient_checkpoint" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_offload_without_a_gpu_is_refused(train: Train) -> None:
    with pytest.raises(ConfigError, match="there is no GPU: activations are in the host's memory already"):
        train(ON, f"{KWARGS}.activation_offload")


@pytest.mark.gpu
def test_offloaded_activations_train_the_same_with_less_memory_of_the_device(train: Train) -> None:
    peaks = []
    for name, switches in {"kept": (), "offloaded": (f"{KWARGS}.activation_offload",)}.items():
        torch.cuda.reset_peak_memory_stats()
        train(ON, *switches, name=name)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("switches", [(), (ON, SELECTIVE), ("--training.mixed_precision_dtype=bf16",)])
def test_steps_inside_the_backward_pass_are_those_after_it(
    train: Train, optimizer: str, switches: tuple[str, ...]
) -> None:
    flags = (*ADAMW, f"--training.optimizer={optimizer}", "--training.max_grad_norm=null", *switches)
    after = train(*flags, name="after")
    inside = train(*flags, *IN_BACKWARD, name="inside")
    assert inside.figures("loss") == after.figures("loss")
    assert inside.figures("learning_rate") == after.figures("learning_rate")
    assert inside.figures("grad_norm") == pytest.approx(after.figures("grad_norm"), rel=1e-5)
    assert same(inside.folder, after.folder)


def test_a_run_that_steps_in_backward_goes_on_with_the_same_bits_either_way(train: Train) -> None:
    flags = (*ADAMW, "--training.max_steps=4", "--training.save_steps=2", "--training.max_grad_norm=null")
    whole = train(*flags, *IN_BACKWARD, name="whole")
    resumed = f"--training.resume_from_checkpoint={whole.folder / 'checkpoint-2'}"
    for name, switches in {"inside": IN_BACKWARD, "after": ()}.items():
        again = train(*flags, *switches, resumed, name=name)
        assert same(again.folder, whole.folder), name
        assert "was changed" not in (again.folder / "logs/rank_0.log").read_text()
    for file in ("optimizer.safetensors", "optimizer.json", "scheduler.json"):
        paths = [folder.folder / "checkpoint-4" / file for folder in (whole, again)]
        assert paths[0].read_bytes() == paths[1].read_bytes(), file


class Watched(torch.optim.SGD):
    """Counts, in its group, how often it stepped, and keeps how many gradients were there each time."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.present: list[int] = []
        self.everything = [p for group in self.param_groups for p in group["params"]]

    def step(self, closure: Any = None) -> None:
        self.present.append(sum(p.grad is not None for p in self.everything))
        super().step(closure)
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1


def watched(build: Callable[[Any], Any] = Watched) -> tuple[Any, Any, Any]:
    from tests.strategies.test_single import strategy

    how = strategy()
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))

    def make(model: torch.nn.Module) -> tuple[Any, Any]:
        optimizer = build(list(model.parameters()), lr=0.1)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    prepared = how.prepare(model, make)
    how.step_in_backward()
    return how, prepared.model, prepared.optimizer


def test_one_gradient_is_there_at_a_time_and_a_group_counts_one_step() -> None:
    how, model, optimizer = watched()
    for _ in range(3):
        how.backward(model(torch.ones(2, 8, device=how.device)).square().sum())
        how.step(None)
    assert optimizer.present == [1] * (3 * 8)
    assert optimizer.param_groups[0]["steps"] == 3
    assert len(optimizer.param_groups[0]["params"]) == 8


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_nothing_is_stepped_after_a_gradient_or_a_loss_that_is_not_finite(bad: float) -> None:
    how, model, _ = watched()
    before = [p.detach().clone() for p in model.parameters()]
    model[1].weight.register_hook(lambda gradient: gradient * bad)
    how.backward(model(torch.ones(2, 8, device=how.device)).square().sum())
    assert not torch.isfinite(how.step(None))
    moved = [not torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True)]
    assert not any(moved[:3])
    assert all(moved[4:])  # the last layers' gradients come first
    how, model, _ = watched()
    before = [p.detach().clone() for p in model.parameters()]
    how.backward(model(torch.ones(2, 8, device=how.device)).square().sum() * bad)
    assert not torch.isfinite(how.step(None))
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


def test_a_run_that_breaks_in_backward_says_that_weights_were_stepped(train: Train) -> None:
    with pytest.raises(NumericsError, match="came before were stepped already; go on from the last checkpoint"):
        train(*IN_BACKWARD, "--training.learning_rate=1e30", "--training.max_steps=9")


@pytest.mark.parametrize(
    ("flag", "match"),
    [
        ("--training.gradient_accumulation_steps=2", "after each micro-batch"),
        ("--training.max_grad_norm=1", "nothing can be clipped. .*Set training.max_grad_norm: null"),
        (f"{KWARGS}.on_nonfinite=skip", "cannot be skipped any more"),
    ],
)
def test_what_needs_the_whole_gradient_is_refused(train: Train, flag: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        train(*IN_BACKWARD, flag)
