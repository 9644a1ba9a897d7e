"""What an optimizer keeps for each parameter, found out by a step and not known by name.

The optimizer is built a second time, over parameters of the real shapes without storage (torch's `FakeTensorMode`), and
takes a step for one parameter after another; of those of a group that have one shape, the first stands for all. An
optimizer whose arithmetic cannot be done without numbers has mostly made its state by then. Where it has not, the
state is that of the miniature, on which a real step was taken, with each side that is a side of the small parameter, or
all of its elements, replaced by that of the real one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from oumi_kernel import OumiError
from oumi_kernel.contracts import Session
from oumi_plugins.trainers._averages import use_averages, use_trained
from oumi_plugins.trainers._miniature import filled
from oumi_plugins.trainers._parameters import parameter_groups

NEEDS_MORE = (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError)
"""What a step raises that needs more than gradients, or numbers where there are none."""
Parameters = dict[str, nn.Parameter]
State = dict[str, dict[str, torch.Tensor]]
"""Name of a parameter -> what is kept for it, by key; keys of mappings within are joined by `/`."""


class OptimizerState(msgspec.Struct, frozen=True):
    """How much an optimizer keeps.

    Attributes:
        known: Bytes while it trains; None where they could not be found out.
        saved_bytes: Bytes in a checkpoint.
    """

    known: int | None = None
    saved_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Return the bytes while it trains, as far as they are known."""
        return self.known or 0


def state_of(session: Session, skeleton: nn.Module, dtype: torch.dtype | None = None) -> OptimizerState:
    """Return what the optimizer of a rehearsal will keep.

    Args:
        session: The session of a rehearsal; its model is the miniature.
        skeleton: The model without weights.
        dtype: Number format of what is stepped; None: that of the weights.
    """
    small, real = dict(session.prepared.model.named_parameters()), dict(skeleton.named_parameters())
    optimizer = session.prepared.optimizer
    use_trained(optimizer)
    if small.keys() != real.keys() or not _step(optimizer, small):  # a strategy has put parameters together
        return OptimizerState()
    tried, complete, firsts = _without_storage(session, skeleton, dtype)
    found: list[int] = []
    for switch in (use_trained, use_averages):
        scaled = {name: _scaled(kept, small[name], real[name]) for name, kept in _of(optimizer, switch).items()}
        counted = {name: sum(map(_bytes, kept.values())) for name, kept in _of(tried, switch).items()}
        taken = {name: counted[first] for name, first in firsts.items() if first in complete}
        found.append(sum((scaled | taken).values()))
    return OptimizerState(*found)


def tensors_in(tree: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a tree of mappings with their keys, joined by `/`."""
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from tensors_in(value, f"{path}/{key}")


def _without_storage(
    session: Session, skeleton: nn.Module, dtype: torch.dtype | None
) -> tuple[Any, set[str], dict[str, str]]:
    """Step parameters without storage.

    Returns:
        The optimizer; those of which its state is complete; and of each parameter, which one was stepped for it.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        converted = dtype if tensor.is_floating_point() else None
        with mode:
            return torch.empty(tensor.shape, dtype=converted or tensor.dtype, device="cpu")

    model = filled(skeleton, empty)
    try:
        with _quiet():
            groups = parameter_groups(model, session.run.config.training.weight_decay)
            optimizer = session.kernel.build_optimizer(groups, session.run)
            use_trained(optimizer)
        parameters = dict(model.named_parameters())
        firsts = _firsts(optimizer, parameters)
        with mode:
            stepped = {name: _step(optimizer, {name: parameters[name]}) for name in set(firsts.values())}
    except (OumiError, *NEEDS_MORE):
        return None, set(), {}
    whole = _of(session.prepared.optimizer, use_trained)
    kept = _of(optimizer, use_trained)
    complete = {
        name
        for name in stepped.keys() & kept.keys()
        if stepped[name] or kept[name].keys() >= whole.get(name, {}).keys()
    }
    return optimizer, complete, firsts


def _firsts(optimizer: Any, parameters: Parameters) -> dict[str, str]:
    """Return name of a parameter that is stepped -> name of the first one of its group, shape and number format."""
    firsts: dict[str, str] = {}
    for group in optimizer.state_dict()["param_groups"]:
        seen: dict[tuple[torch.Size, torch.dtype], str] = {}
        for name in group["param_names"]:
            parameter = parameters[name]
            firsts[name] = seen.setdefault((parameter.shape, parameter.dtype), name)
    return firsts


def _step(optimizer: Any, parameters: Parameters) -> bool:
    """Take a step with gradients of zero, and return whether that could be done."""
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    try:
        with torch.compiler.set_stance("force_eager"):
            optimizer.step()
    except NEEDS_MORE:
        return False
    finally:
        for parameter in parameters.values():
            parameter.grad = None
    return True


def _of(optimizer: Any, switch: Callable[[Any], None]) -> State:
    """Return the state of an optimizer by names of parameters, once it is switched."""
    if optimizer is None:
        return {}
    switch(optimizer)
    saved = optimizer.state_dict()
    names = {
        i: n for group in saved["param_groups"] for i, n in zip(group["params"], group["param_names"], strict=True)
    }
    return {names[index]: dict(tensors_in(values)) for index, values in saved["state"].items()}


def _scaled(kept: Mapping[str, torch.Tensor], small: torch.Tensor, real: torch.Tensor) -> int:
    """Return the bytes of one parameter's state, from the state that a small parameter of as many dimensions has."""
    sides = dict(zip(small.shape, real.shape, strict=True)) | {small.numel(): real.numel()}
    return sum(math.prod(sides.get(side, side) for side in t.shape) * t.element_size() for t in kept.values())


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextmanager
def _quiet() -> Generator[None]:
    """Keep an optimizer that is built a second time from saying again what it has to say."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
