"""Layers of a simulated model that are alike: some of each kind compute, and the others take what one of those took.

A layer's span in the forward pass is from its entrance to that of the next layer; in the backward pass from when the
gradient of the next layer's input is there until that of its own is. What a model makes once, such as a mask, is made
in the first layer of a kind in either direction, so that it is the second which others take after.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

COMPUTED = 2
"""How many layers of each kind compute at either end of a stack."""
PLACES = ("layer_idx", "layer_id")
"""Attributes that only say where a layer stands."""
Kind = tuple[Hashable, ...]


class Counts(Protocol):
    """What counts the bytes that are alive."""

    now: int

    def hold(self, size: int) -> None:
        """Count bytes of which there is no tensor."""
        ...

    def highest(self) -> int:
        """Return the most at one time since this was asked before."""
        ...


class Span(NamedTuple):
    """What a layer changed in one pass, and the most at one time within it, in bytes."""

    change: int
    most: int


class Pass:
    """The spans of the layers of one stack in one direction."""

    def __init__(self, live: Counts) -> None:
        self._live = live
        self._spans: dict[Kind, Span] = {}
        self._began: int | None = None

    def begin(self) -> None:
        """Begin the span of a layer that computes."""
        self._live.highest()
        self._began = self._live.now

    def end(self, kind: Kind) -> None:
        """End the span that was begun, if one was: that of a layer of a kind."""
        if self._began is not None:
            self._spans[kind] = Span(self._live.now - self._began, self._live.highest() - self._began)
        self._began = None

    def repeat(self, kind: Kind) -> None:
        """Take what the latest layer of a kind took."""
        span = self._spans[kind]
        self._live.hold(span.most)
        self._live.hold(span.change - span.most)


class Stack:
    """A list of layers, some of which compute."""

    def __init__(self, live: Counts) -> None:
        self.forward, self.backward = Pass(live), Pass(live)
        self.open: Kind | None = None


class Layer(nn.Module):
    """A layer in its place; `computes`: or one of its kind for it."""

    def __init__(self, layer: nn.Module, kind: Kind, stack: Stack, *, computes: bool) -> None:
        super().__init__()
        self.layer = layer
        self.kind, self.stack, self.computes = kind, stack, computes

    def __getattr__(self, name: str) -> Any:
        """Return what models ask of their layers."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, hidden_states: torch.Tensor, *others: Any, **named: Any) -> Any:
        """Return what the layer does, of the shape (..., width); or what it is given.

        Raises:
            TypeError: The layer returns more than that.
        """
        stack = self.stack
        if stack.open is not None:
            stack.forward.end(stack.open)
        hidden: Any = _Boundary.apply(hidden_states, self)
        if not self.computes:
            stack.open = None
            stack.forward.repeat(self.kind)
            return hidden
        stack.open = self.kind
        stack.forward.begin()
        result = self.layer(hidden, *others, **named)
        if not isinstance(result, torch.Tensor):
            raise TypeError(f"{type(self.layer).__name__} returns more than hidden states")
        return result

    def passed_back(self) -> None:
        """Note that the gradient of what the layer reads is there."""
        backward = self.stack.backward
        if self.computes:
            backward.end(self.kind)
        else:
            backward.repeat(self.kind)
        backward.begin()


class _Boundary(torch.autograd.Function):
    """Nothing, but that it is known when its gradient is there."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, layer: Layer) -> torch.Tensor:
        ctx.layer = layer
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        ctx.layer.passed_back()
        return gradients[0], None


def compute_some(model: nn.Module, live: Counts) -> None:
    """Let only some of the layers of each stack in a model compute, and the others take what these do.

    Args:
        model: A model whose tensors have no storage.
        live: What counts their bytes.
    """
    trains = False
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList) and all(isinstance(one, GradientCheckpointingLayer) for one in module):
            _stand_in(module, Stack(live), trains)
        trains = trains or any(one.requires_grad for one in module.parameters(recurse=False))


def _stand_in(layers: nn.ModuleList, stack: Stack, trains: bool) -> None:
    kinds: list[Kind] = []
    for layer in layers:
        kinds.append((trains, *_kind(layer)))
        trains = trains or any(parameter.requires_grad for parameter in layer.parameters())
    places = {kind: [place for place, other in enumerate(kinds) if other == kind] for kind in set(kinds)}
    if all(len(of_kind) <= 2 * COMPUTED for of_kind in places.values()):
        return
    computing = {place for of_kind in places.values() for place in (*of_kind[:COMPUTED], *of_kind[-COMPUTED:])}
    for place, (layer, kind) in enumerate(zip(list(layers), kinds, strict=True)):
        layers[place] = Layer(layer, kind, stack, computes=place in computing)


def _kind(layer: nn.Module) -> Kind:
    """Return what layers have in common that take the same: their modules, tensors and settings."""
    return tuple(
        (
            name,
            type(module),
            tuple((key, str(value)) for key, value in sorted(vars(module).items()) if _is_setting(key, value)),
            tuple((key, one.shape, one.dtype, one.requires_grad) for key, one in _tensors(module)),
        )
        for name, module in layer.named_modules()
    )


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _is_setting(key: str, value: object) -> bool:
    return key not in PLACES and isinstance(value, bool | int | float | str | tuple | torch.dtype | type(None))
