"""Whether every adapter learns: looked at once, in the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.utils.hooks import RemovableHandle

from oumi_kernel import NumericsError
from oumi_plugins.strategies.shards import own_part

_log = logging.getLogger("oumi_plugins.peft")
SHOWN = 5


class FirstGradients:
    """Watches the adapters of a model until `check` is called.

    An adapter learns if some weight of it has a gradient that is not zero: others of it may have zeros at first, as
    the first of LoRA's two matrices does while the second is zero.
    """

    def __init__(self, model: Any, *, compiled: bool) -> None:
        """Begin to watch.

        Args:
            model: The library's model.
            compiled: Whether it is compiled: who is called cannot be seen then, and all adapters count as called.
        """
        self._adapters = _adapters(model)
        self._called = set(self._adapters) if compiled else set[str]()
        self._moved: dict[str, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []
        modules = dict(model.named_modules())
        for adapter, weights in self._adapters.items():
            if not compiled:
                self._handles.append(modules[adapter].register_forward_pre_hook(self._note_call(adapter)))
            for name, weight in weights.items():
                self._handles.append(self._watch(name, weight))
        self._may_be_zero = {name for name in self._adapters if isinstance(modules[name], TrainableTokensLayer)}

    def check(self) -> frozenset[str]:
        """Stop watching; return the names of the weights whose gradient was not zero. Waits for the device.

        Raises:
            NumericsError: An adapter was called and got no gradient.
        """
        for handle in self._handles:
            handle.remove()
        moved = {name for name, flag in self._moved.items() if bool(flag)}
        silent = sorted(name for name, weights in self._adapters.items() if not self._learns(name, weights, moved))
        idle = sorted(self._adapters.keys() - self._called)
        if idle:
            _log.warning("%d adapters saw no token in the first step: %s", len(idle), _some(idle))
        if silent:
            raise NumericsError(
                f"{len(silent)} of {len(self._adapters)} adapters got no gradient in the first step, so they would "
                f"never learn: {_some(silent)}. Something between them and the loss cuts gradients off; try "
                "training.gradient_checkpointing_kwargs.use_reentrant: false, or leave these modules out "
                "(peft.lora_exclude_modules).",
                details={"adapters": silent},
            )
        return frozenset(moved)

    def _learns(self, adapter: str, weights: dict[str, nn.Parameter], moved: set[str]) -> bool:
        if adapter not in self._called:
            return True  # such as an expert that no token was sent to
        reached = weights.keys() <= self._moved.keys()
        return reached and (adapter in self._may_be_zero or bool(weights.keys() & moved))

    def _note_call(self, adapter: str) -> Callable[..., None]:
        return lambda *_: self._called.add(adapter)

    def _watch(self, name: str, weight: nn.Parameter) -> RemovableHandle:
        """Look before the gradient is added up: a step in the backward pass lets go of it at once.

        A part of a divided weight gets its gradient when that was exchanged.
        """
        if hasattr(weight, "to_local"):
            return weight.register_post_accumulate_grad_hook(lambda part: self._note(name, own_part(part.grad)))
        return weight.register_hook(lambda gradient: self._note(name, gradient))

    def _note(self, name: str, gradient: torch.Tensor) -> None:
        moved = gradient.ne(0).any()  # only the first process looks
        self._moved[name] = self._moved[name] | moved if name in self._moved else moved


def _adapters(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Return adapter -> its weights that train, by name; an adapter is the innermost layer of the library's."""
    layers = {
        name
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) or name.startswith("prompt_encoder.")
    }
    found: dict[str, dict[str, nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        above = name.split(".")
        owners = (".".join(above[:end]) for end in range(len(above) - 1, 0, -1))
        owner = next((candidate for candidate in owners if candidate in layers), None)
        if weight.requires_grad and owner is not None:
            found.setdefault(owner, {})[name] = weight
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
