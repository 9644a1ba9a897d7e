"""The model's weights in a checkpoint: whole, by whoever shaped the model last, or in parts, by the strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oumi_kernel.contracts import Session
from oumi_kernel.parts import SavesParts


def save_weights(session: Session, folder: Path) -> None:
    """Write the model of a session; an adapter, which is small, is always written whole. Every process must call this.

    Raises:
        CheckpointError: It cannot be written.
    """
    model, strategy, kernel = session.prepared.model, session.strategy, session.kernel
    if not kernel.has_adapter and isinstance(strategy, SavesParts) and strategy.save_weights(model, folder):
        return
    state = lambda: strategy.full_state(model, trained=kernel.has_adapter)  # noqa: E731
    kernel.save_model(model, state, session.tokenizer, folder, session.run)


def load_weights(session: Session, model: Any, folder: Path) -> None:
    """Read a model's weights back; for one without weights names and shapes are compared.

    Raises:
        CheckpointError: A file is missing, damaged, or does not fit the model.
    """
    if not (isinstance(session.strategy, SavesParts) and session.strategy.load_weights(model, folder)):
        session.kernel.load_weights(model, folder, session.run)
