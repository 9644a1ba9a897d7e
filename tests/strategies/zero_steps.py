"""Steps of DeepSpeed's strategy on a small model: called in a process of its own (see `forked`)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from oumi_kernel.contracts import Run, World
from oumi_kernel.loading import LoadedConfig
from oumi_plugins.strategies._deepspeed import DeepSpeedStrategy


def steps(loaded: LoadedConfig) -> dict[str, Any]:
    """Return weights and norms: at first, after a step whose loss is nan, one whose gradient is, and one that is fine.

    The process is the only one; there are two groups of weights and two micro-batches, of which the first is nan where
    the gradient is to be.
    """
    strategy = DeepSpeedStrategy(
        loaded.config.deepspeed, Run(config=loaded.config, folder=loaded.folder, world=World())
    )
    strategy.setup()
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))

    def build(model: nn.Module) -> tuple[Any, Any]:
        groups = [{"params": list(part.named_parameters(str(i)))} for i, part in enumerate(model)]
        optimizer = torch.optim.AdamW(groups, lr=0.1)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)

    prepared = strategy.prepare(model, build)
    found: dict[str, Any] = {"weights": [_weights(strategy, prepared.model)], "norms": []}
    for factor, loss in ((1.0, math.nan), (math.nan, 1.0), (1.0, 1.0)):
        for last, scale in ((False, factor), (True, 1.0)):
            with strategy.backward_context(last=last):
                strategy.backward(strategy.compute(lambda s: (s * model(torch.ones(2, 4))).sum(), torch.tensor(scale)))
        found["norms"].append(float(strategy.step(1.0, torch.tensor(loss))))
        found["weights"].append(_weights(strategy, prepared.model))
    strategy.close()
    return found


def _weights(strategy: DeepSpeedStrategy, model: nn.Module) -> list[float]:
    state = strategy.full_state(model, trained=False)
    assert state is not None
    return torch.cat([tensor.flatten() for tensor in state.values()]).tolist()
