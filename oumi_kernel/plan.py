"""How long a run is, and how even the work of its processes."""

from __future__ import annotations

import msgspec


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """How even the work of several processes is: the tokens of the busiest in a step, over the mean of all processes.

    Attributes:
        dealt: As examples are dealt to processes; 1.0 is even.
        in_turn: As it would be if they took turns.
    """

    dealt: float
    in_turn: float

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.dealt:.3f} ({self.in_turn:.3f} if examples were dealt in turn)"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How long the run is, and how even.

    Attributes:
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of one pass over the training examples, the last partial one included.
        examples: Training examples per epoch.
        effective_batch_size: Examples of a full optimizer step, over all processes.
        balance: How even the work of several processes is, an average over steps; None for one, or if not known.
    """

    total_steps: int
    steps_per_epoch: int
    examples: int
    effective_batch_size: int
    balance: Balance | None = None
