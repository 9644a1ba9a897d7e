"""What a plugin author writes: a component, its typed parameters, and the markers of its hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec
import pluggy

from oumi_kernel.config import TrainingConfig
from oumi_kernel.schema import Params

KERNEL_API = (1, 0)
"""The version of everything that plugins see: hooks, contracts, `Component`. Minor versions only add."""

hookimpl = pluggy.HookimplMarker("oumi")
hookspec = pluggy.HookspecMarker("oumi")


class NoParams(Params):
    """A component without parameters of its own: any key in its keyword arguments is an error."""


class Combination(msgspec.Struct, frozen=True):
    """What became of a component together with something else.

    Attributes:
        axis: What kind of thing it is, such as `optimizer`.
        name: The thing.
        settings: What a configuration says to have it, as `key: value`.
        refused: Why the two are refused, with the nearest that works; empty where they train.
    """

    axis: str
    name: str
    settings: tuple[str, ...] = ()
    refused: str = ""


class Component:
    """One named implementation of a family, or an observer of a run.

    The class is what an entry point names. It is created once a run, without arguments, when a configuration names
    it; its module must be light (import torch inside the hooks, or in a private module that they import).
    """

    api: ClassVar[tuple[int, int]] = KERNEL_API
    """The lowest kernel API that the component needs: same major number, minor not above the kernel's."""

    params_type: ClassVar[type[Params]] = NoParams
    """The closed struct of its parameters; the `*_kwargs` of its slot are converted to it when a config is loaded."""

    requires: ClassVar[Mapping[str, str]] = {}
    """Importable module -> what to install for it, such as `{"bitsandbytes": "oumi-kernel[quant]"}`."""

    unserved: ClassVar[Mapping[str, str]] = {}
    """Configuration key -> reason. Setting such a key to anything but its default is an error while this is active."""

    without_effect: ClassVar[Mapping[str, str]] = {}
    """Configuration key -> reason. Setting such a key to anything but its default is a warning while this is active."""

    @classmethod
    def requirements(cls, config: TrainingConfig) -> Mapping[str, str]:
        """Return what a configuration requires: `requires`, unless a component needs more for some keys."""
        return cls.requires

    @classmethod
    def combinations(cls) -> Sequence[Combination]:
        """Return what was tried together with the component, for `oumi plugins show`."""
        return ()


class DatasetComponent(Component):
    """A component of the family `datasets`; a bare function or class serves as well."""

    default_collator: ClassVar[str] = "default"
    """The collator for a split whose `collator_name` is null."""

    target_column: ClassVar[str | None] = None
    """The column that holds what is trained on, so that `pack` needs no `target_col`."""


class CollatorComponent(Component):
    """A component of the family `collators`."""

    train_target: ClassVar[str] = "all_tokens"
    """On which tokens the loss is computed when `train_target` is null: a name of `oumi_kernel.config.TrainTarget`."""
