"""Optimizers of schedulefree whose weights come back from an evaluation or a checkpoint bit by bit.

The library goes from the weights that gradients are taken at to their average, and back, by arithmetic, which rounds.
Then a run that is evaluated or saved would differ from one that is not. Here the weights are kept while the average is
in their place, among the state, so that a checkpoint holds both.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import schedulefree
import torch

from oumi_kernel import dump
from oumi_kernel.contracts import Run
from oumi_plugins.optimizers.schedule_free import ScheduleFreeParams

_log = logging.getLogger("oumi_plugins.optimizers.schedule_free")
KEPT = "y"
"""Where the weights that gradients are taken at are kept; the name is the paper's."""
SCHEDULES = ("constant", "constant_with_warmup")


def build(
    kind: Any, groups: Sequence[dict[str, Any]], params: ScheduleFreeParams, run: Run, settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return an optimizer of this module; warns of a schedule."""
    schedule = run.config.training.lr_scheduler_type
    if schedule not in SCHEDULES:
        _log.warning(
            "training.lr_scheduler_type: schedule-free optimizers are made for a learning rate that does not fall, and "
            "%s lets it fall as well; use constant or constant_with_warmup.",
            schedule,
        )
    return kind(groups, **settings, **dump(params))


class Keeping(torch.optim.Optimizer):
    """Comes before an optimizer of the library, whose switch to the averages and back is not exact by itself."""

    def eval(self) -> None:
        """Put the averages in the place of the weights, and keep these."""
        keep(self)
        super().eval()  # pyright: ignore[reportAttributeAccessIssue] - of the library's class, which comes after

    def train(self) -> None:
        """Put the weights back."""
        super().train()  # pyright: ignore[reportAttributeAccessIssue] - as above
        restore(self)


class AdamW(Keeping, schedulefree.AdamWScheduleFree):
    """Schedule-free AdamW."""


class RAdam(Keeping, schedulefree.RAdamScheduleFree):
    """Schedule-free RAdam."""


class Sgd(Keeping, schedulefree.SGDScheduleFree):
    """Schedule-free SGD."""


def keep(optimizer: torch.optim.Optimizer) -> None:
    """Copy the weights of groups that train into the state."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["train_mode"] else ():
            if "z" in optimizer.state[parameter]:
                optimizer.state[parameter][KEPT] = parameter.detach().clone()


@torch.no_grad()
def restore(optimizer: torch.optim.Optimizer) -> None:
    """Take the copies out of the state."""
    for parameter, state in optimizer.state.items():
        if KEPT in state:
            parameter.copy_(state.pop(KEPT))
