"""The families: what kinds of component there are, and the entry-point group of each. No component is named here."""

from __future__ import annotations

import msgspec


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of component.

    Attributes:
        name: Plural, as in the entry-point group `oumi.<name>`.
        noun: Singular, for messages.
        hook: The hook that a component must implement to be of this family; empty for observers.
        takes_callables: Whether a bare function or class serves as a component.
        may_fail: Whether a run goes on without a component that failed while it observed.
    """

    name: str
    noun: str
    hook: str = ""
    takes_callables: bool = False
    may_fail: bool = False

    @property
    def group(self) -> str:
        """The entry-point group."""
        return f"oumi.{self.name}"


FAMILIES = {
    family.name: family
    for family in (
        Family(name="models", noun="model loader", hook="oumi_build_model"),
        Family(name="datasets", noun="dataset", hook="oumi_load_dataset", takes_callables=True),
        Family(name="collators", noun="collator", hook="oumi_build_collator"),
        Family(name="trainers", noun="trainer", hook="oumi_build_trainer"),
        Family(name="optimizers", noun="optimizer", hook="oumi_build_optimizer"),
        Family(name="schedulers", noun="learning rate schedule", hook="oumi_build_scheduler"),
        Family(name="metrics", noun="metric", hook="oumi_build_metric", takes_callables=True),
        Family(name="peft", noun="PEFT method", hook="oumi_apply_peft"),
        Family(name="strategies", noun="strategy", hook="oumi_build_strategy"),
        Family(name="kernels", noun="kernel"),
        Family(name="trackers", noun="tracker", may_fail=True),
        Family(name="plugins", noun="plugin", may_fail=True),
    )
}

SECTIONS_GROUP = "oumi.sections"
"""Entry points here name a top-level section of the YAML and the `Params` struct that types it."""

DEFAULT = "default"
"""The name, within a family, of the component that serves when the configuration names none (or a hub id)."""

DISTRIBUTED = "distributed"
"""The name of the strategy that serves more than one process when the configuration names none."""


def normalise(name: str) -> str:
    """Return the spelling under which names are compared: lower case, `-` as `_`."""
    return name.strip().lower().replace("-", "_")
