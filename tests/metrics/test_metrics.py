"""Metrics stream: what they find does not depend on how the tokens were batched."""

from __future__ import annotations

import math

import pytest
import torch

from oumi_kernel.config import TrainingConfig
from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text, split_overrides
from oumi_kernel.plugins import Kernel, resolve, scan
from oumi_plugins.trainers._loop import Seen
from tests.conftest import minimal_yaml

LOSSES = torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0])
PREDICTIONS = torch.tensor([1, 2, 3, 4, 5])
LABELS = torch.tensor([1, 2, 0, 4, 0])


def figures(name: str, *sizes: int) -> dict[str, float]:
    loaded = load_text(minimal_yaml(), "c", split_overrides([f"--training.metrics_function={name}"])[0])
    assert isinstance(loaded.config, TrainingConfig)
    (metric,) = Kernel(resolve(loaded, scan())).build_metrics(Run(config=loaded.config, folder=loaded.folder))
    for losses, predictions, labels in zip(
        LOSSES.split(list(sizes)), PREDICTIONS.split(list(sizes)), LABELS.split(list(sizes)), strict=True
    ):
        metric.update(Seen(losses, predictions, labels))
    return dict(metric.compute())


@pytest.mark.parametrize("sizes", [(5,), (1, 4), (2, 2, 1), (1, 1, 1, 1, 1)])
def test_figures_are_of_tokens_whatever_the_batches(sizes: tuple[int, ...]) -> None:
    assert figures("token_accuracy", *sizes) == pytest.approx({"token_accuracy": 3 / 5})
    assert figures("perplexity", *sizes) == pytest.approx({"perplexity": math.exp(6.75 / 5)})


def test_each_evaluation_begins_anew() -> None:
    assert figures("perplexity", 5) == figures("perplexity", 5)


def test_a_perplexity_too_large_for_a_float_is_infinite() -> None:
    from oumi_plugins.metrics.perplexity import Perplexity

    metric = Perplexity()
    metric.update(Seen(torch.tensor([1e4]), PREDICTIONS[:1], LABELS[:1]))
    assert metric.compute() == {"perplexity": math.inf}
