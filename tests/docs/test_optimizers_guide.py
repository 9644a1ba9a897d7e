"""The guide lists every optimizer, and what it says of its state is measured."""

from __future__ import annotations

import re

import pytest
import torch

from oumi_kernel.plugins import scan
from tests.conftest import ROOT
from tests.optimizers.by_hand import build, eager

ROW = re.compile(r"^\| (`[^|]+`) \| ([^|]+) \| ([\d.]+) \|", re.MULTILINE)
SIDE = 512
LIBRARIES = {"galore-torch": "galore_torch", "apollo-torch": "apollo_torch"}


def rows() -> list[tuple[list[str], str, str]]:
    text = (ROOT / "docs/guides/optimizers.md").read_text()
    return [(re.findall(r"`([^`]+)`", names), library, state) for names, library, state in ROW.findall(text)]


def test_every_optimizer_is_listed_once() -> None:
    entries = [entry for entry in scan().entries if entry.family == "optimizers" and entry.distribution == "oumi-kernel"]
    listed = sorted(tuple(sorted(names)) for names, _, _ in rows())
    assert listed == sorted({tuple(sorted((entry.name, *entry.also))) for entry in entries})


@pytest.mark.parametrize(("names", "library", "state"), rows(), ids=lambda value: str(value))
def test_the_bytes_of_a_state_are_those_that_a_step_leaves(names: list[str], library: str, state: str) -> None:
    pytest.importorskip(LIBRARIES.get(library, library))
    if names[0].startswith("paged_ademamix") and not torch.cuda.is_available():
        pytest.skip("needs a GPU, and torch sees none")
    weight = torch.nn.Parameter(torch.randn(SIDE, SIDE))
    flags = ["--training.sgd_momentum=0"]
    if names[0].startswith(("galore", "apollo")):
        flags.append(f"--training.optimizer_kwargs.rank={SIDE // 32}")
    optimizer = build(names[0], [{"params": [("w", weight)], "weight_decay": 0.0, "kind": "weights"}], *flags)
    if hasattr(optimizer, "train"):
        optimizer.train()
    weight.grad = torch.randn(SIDE, SIDE)
    with eager():
        optimizer.step()
    assert f"{sum(sizes(optimizer.state_dict()['state'])) / weight.numel():.1f}" == state


def sizes(tree: object) -> list[int]:
    if isinstance(tree, torch.Tensor):
        return [tree.numel() * tree.element_size()]
    return [size for value in tree.values() for size in sizes(value)] if isinstance(tree, dict) else []
