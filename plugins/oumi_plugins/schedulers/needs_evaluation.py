"""What schedules need that follow the evaluation loss."""

from __future__ import annotations

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config import Moments
from oumi_kernel.contracts import Run

NO_WARMUP = {
    "training.warmup_steps": "it follows the evaluation loss only.",
    "training.warmup_ratio": "it follows the evaluation loss only.",
}


def need_validation(name: str, run: Run) -> None:
    """Refuse a run that never evaluates.

    Raises:
        ConfigError: There is no validation split, or it is never evaluated.
    """
    config = run.config
    if not config.data.validation.datasets or config.training.eval_strategy is Moments.NO:
        message = f"{name} follows the evaluation loss, and nothing is evaluated."
        hint = "Give data.validation and training.eval_strategy: steps or epoch."
        raise ConfigError(Problem(code="rule", path="training.lr_scheduler_type", message=message, hint=hint))
