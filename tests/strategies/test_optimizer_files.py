"""The state of every optimizer through the strategy: written, read, and left alone by steps that are not finite."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from oumi_kernel import CheckpointError
from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text
from oumi_plugins.strategies._optimizer_files import read_optimizer, state_of, write_rest, write_tensors
from oumi_plugins.strategies._single import SingleStrategy
from tests.conftest import minimal_yaml
from tests.optimizers.by_hand import (
    Case,
    Tensors,
    available,
    build,
    eager,
    every_optimizer,
    gradients,
    groups_of,
    optimizer_of,
    step,
    tensors,
)


class Holder(torch.nn.Module):
    """A model of nothing but parameters."""

    def __init__(self, parameters: Tensors) -> None:
        super().__init__()
        self.held = torch.nn.ParameterList(parameters.values())


def strategy_of(optimizer: Any, parameters: Tensors) -> SingleStrategy:
    loaded = load_text(minimal_yaml(), "c")
    strategy = SingleStrategy(Run(config=loaded.config, folder=loaded.folder))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    strategy.prepare(Holder(parameters), lambda model: (optimizer, schedule))
    return strategy


def do_step(strategy: SingleStrategy, parameters: Tensors, at: int, factor: float = 1.0) -> float:
    for name, gradient in gradients(at, parameters).items():
        parameters[name].grad = gradient * factor
    return float(strategy.step(1.0, torch.ones(())))


def same(left: Any, right: Any) -> bool:
    """Compare trees of states to the bit, quantised tensors by what they hold."""
    if hasattr(left, "__tensor_flatten__") and type(left) is not torch.Tensor:
        inner = left.__tensor_flatten__()[0]
        return type(left) is type(right) and all(same(getattr(left, n), getattr(right, n)) for n in inner)
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return same(vars(left), vars(right)) if hasattr(left, "__dict__") else left == right


@pytest.mark.parametrize("case", every_optimizer())
def test_a_state_that_was_saved_goes_on_with_the_same_bits(case: Case, tmp_path: Path) -> None:
    available(case)
    with eager():
        straight = tensors()
        optimizer = optimizer_of(case, straight)
        strategy = strategy_of(optimizer, straight)
        for at in range(3):
            do_step(strategy, straight, at)
        switch(optimizer, "eval")
        strategy.save(tmp_path)
        saved = {name: one.detach().clone() for name, one in straight.items()}
        switch(optimizer, "train")

        resumed = {name: torch.nn.Parameter(one) for name, one in saved.items()}
        second = optimizer_of(case, resumed)
        again = strategy_of(second, resumed)
        again.load(tmp_path)
        switch(second, "train")
        assert same(second.state_dict(), optimizer.state_dict())
        for at in range(3, 5):
            do_step(strategy, straight, at)
            do_step(again, resumed, at)
        assert all(torch.equal(resumed[name], straight[name]) for name in straight)
        assert same(second.state_dict(), optimizer.state_dict())
        assert [group["lr"] for group in second.param_groups] == [group["lr"] for group in optimizer.param_groups]


def switch(optimizer: Any, to: str) -> None:
    if hasattr(optimizer, to):
        getattr(optimizer, to)()


@pytest.mark.parametrize("case", every_optimizer())
def test_a_step_that_is_not_finite_leaves_every_optimizer_as_it_was(case: Case) -> None:
    available(case)
    with eager():
        parameters = tensors()
        optimizer = optimizer_of(case, parameters)
        strategy = strategy_of(optimizer, parameters)
        norms = []
        for at in range(4):
            fails = at in (0, 2)
            before = copy.deepcopy((dict(parameters), optimizer.state_dict()["state"]))
            norms.append(do_step(strategy, parameters, at, math.inf if fails else 1.0))
            assert same(before, (dict(parameters), optimizer.state_dict()["state"])) == fails
        assert [math.isfinite(norm) for norm in norms] == [False, True, False, True]


def test_numbers_and_mappings_are_json_and_tensors_safetensors(tmp_path: Path) -> None:
    pytest.importorskip("galore_torch")
    parameters = tensors()
    optimizer = build("galore_adamw", groups_of(parameters), "--training.optimizer_kwargs.rank=8")
    step([optimizer], parameters, 0)
    write_tensors(state_of(optimizer), tmp_path)
    write_rest(state_of(optimizer), tmp_path, beside=1)
    record = json.loads((tmp_path / "optimizer.json").read_text())
    assert record["optimizer"] == "AdamW"
    assert record["beside"] == 1
    projector = record["state"]["layer.a.weight"]["projector"]
    assert (projector["rank"], projector["update_proj_gap"], record["state"]["norm.weight"]) == (8, 200, {"step": 1})
    assert load_file(tmp_path / "optimizer.safetensors")["layer.a.weight:projector/ortho_matrix"].shape == (64, 8)


def test_a_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    parameters = tensors()
    muon = build("muon", groups_of(parameters))
    step([muon], parameters, 0)
    write_rest(state_of(muon), tmp_path)
    with pytest.raises(CheckpointError, match=r"is that of Muon and AdamW\. Name that optimizer, or train anew"):
        read_optimizer(build("adamw", groups_of(tensors())), tmp_path, {})
    adamw = build("adamw", groups_of(tensors()))
    write_rest(state_of(adamw), tmp_path)
    fewer = groups_of(tensors())
    fewer[0]["params"] = fewer[0]["params"][:2]
    with pytest.raises(CheckpointError, match="is that of other parameters"):
        read_optimizer(build("adamw", fewer), tmp_path, {})


def test_a_state_that_no_checkpoint_can_hold_is_refused_with_what_it_is(tmp_path: Path) -> None:
    parameters = tensors()
    optimizer = build("sgd", groups_of(parameters))
    optimizer.state[parameters["norm.weight"]]["thing"] = Path("x")
    with pytest.raises(CheckpointError, match=r"holds a PosixPath, which no checkpoint can hold"):
        write_rest(state_of(optimizer), tmp_path)


def test_evaluating_and_saving_leave_no_mark_on_schedule_free_weights() -> None:
    pytest.importorskip("schedulefree")
    for name in ("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"):
        straight, watched = tensors(), tensors()
        optimizers = [build(name, groups_of(one)) for one in (straight, watched)]
        for one in optimizers:
            one.train()
        for at in range(8):
            step(optimizers[:1], straight, at)
            step(optimizers[1:], watched, at)
            optimizers[1].eval()
            is_average = not torch.equal(watched["layer.a.weight"], straight["layer.a.weight"])
            optimizers[1].train()
            assert all(torch.equal(watched[key], straight[key]) for key in straight), (name, at)
        assert is_average
        assert not [key for state in optimizers[1].state.values() for key in state if key == "y"]
