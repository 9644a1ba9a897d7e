"""Compiling the layers one by one: the same results, from code that is compiled once for all of them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch._dynamo.utils import counters

from oumi_kernel import ConfigError
from oumi_plugins.trainers._compiling import repeated_layers
from oumi_plugins.trainers._forward import Forward
from tests.trainers.conftest import Train
from tests.trainers.test_forward import SHAPE, gradients, padded_batch, sequences

BATCHES = ((9, 1, 17, 4), (30, 2), (5, 5, 5), (64,))


def built(layers: int) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**(SHAPE | {"num_hidden_layers": layers}))
    return transformers.AutoModelForCausalLM.from_config(config).train()


def learned(model: nn.Module, *, compiled: bool) -> tuple[list[float], dict[str, torch.Tensor], list[int]]:
    """Return the losses of batches of several lengths, the sum of their gradients, and graphs made after each batch."""
    forward = Forward(model, ignore=-100)
    forward.choose(None, nullcontext)
    if compiled:
        forward.compile("layers")
    losses, graphs = [], []
    for lengths in BATCHES:
        batch, _ = forward.supervise(padded_batch(sequences(lengths)))
        loss = forward.loss(batch)
        loss.backward()
        losses.append(float(loss.detach()))
        graphs.append(counters["stats"]["unique_graphs"])
    return losses, gradients(model), graphs


@pytest.fixture
def fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_compiled_layers_compute_the_same_and_are_compiled_once_for_all_layers_and_lengths() -> None:
    graphs = []
    for layers in (1, 4):
        wanted, wanted_gradients, _ = learned(built(layers), compiled=False)
        model = built(layers)
        found, found_gradients, made = learned(model, compiled=True)
        graphs += made
        assert [m for m in model.modules() if m._compiled_call_impl is not None] == list(model.model.layers)
        assert found == pytest.approx(wanted, rel=1e-5)
        for name, gradient in wanted_gradients.items():
            scale = float(gradient.abs().max()) + 1e-6
            torch.testing.assert_close(found_gradients[name] / scale, gradient / scale, rtol=1e-4, atol=1e-4, msg=name)
    assert graphs[0] > 0
    assert graphs == [graphs[0]] * 2 * len(BATCHES)  # neither another length nor another layer made one more


@pytest.mark.slow
def test_a_run_whose_layers_are_compiled_learns_the_same(train: Train) -> None:
    plain = train(name="plain")
    compiled = train("--training.compile=true", "--training.trainer_kwargs.compile_scope=layers", name="compiled")
    assert compiled.figures("loss") == pytest.approx(plain.figures("loss"), rel=1e-5)
    assert compiled.figures("grad_norm") == pytest.approx(plain.figures("grad_norm"), rel=1e-4)


def test_the_layers_are_those_of_the_decoder() -> None:
    model = built(3)
    assert repeated_layers(model) == list(model.model.layers)


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer_kwargs.compile_scope: Linear has no layers .*compile_scope: model"):
        repeated_layers(nn.Linear(2, 2))
