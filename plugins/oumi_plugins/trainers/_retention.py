"""Which checkpoints are kept, and which of them is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config import Moments, TrainingConfig, TrainingParams


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration says about it.

    Attributes:
        limit: How many to keep; None keeps all.
        load_best: Whether the weights of the best one are the result of the run.
        asynchronous: Whether training goes on while one is sealed.
    """

    limit: int | None = None
    load_best: bool = False
    asynchronous: bool = False


class Best(msgspec.Struct, frozen=True):
    """The checkpoint with the lowest evaluation loss so far.

    Attributes:
        step: Its optimizer step.
        eval_loss: Its evaluation loss, in nats per token.
    """

    step: int
    eval_loss: float


def save_is_due(training: TrainingParams, step: int, *, ends: bool, epoch_ends: bool) -> bool:
    """Return whether a step gets a checkpoint. Where checkpoints are saved at all, the last step `ends` with one."""
    by_steps = training.save_steps > 0 and (ends or step % training.save_steps == 0)
    return by_steps or (training.save_epoch and (ends or epoch_ends))


def better(best: Best | None, step: int, eval_loss: float | None) -> Best | None:
    """Return the better one of the best so far and a checkpoint whose loss may not be known; the earlier of equals."""
    if eval_loss is None or not math.isfinite(eval_loss) or (best and best.eval_loss <= eval_loss):
        return best
    return Best(step, eval_loss)


def expendable(steps: Sequence[int], newest: int, best: int | None, limit: int | None) -> list[int]:
    """Return the steps whose checkpoints go, so that at most `limit` are left.

    The newest stays, because a run goes on from it; then the best, if there is room for two; then the newest of the
    rest. Steps beyond the newest are another run's and are not looked at.

    Args:
        steps: Steps of the checkpoints there are, `newest` among them.
        newest: The step that was just saved.
        best: The step with the lowest evaluation loss, if any was evaluated.
        limit: How many to keep, at least 1; None keeps all.
    """
    if limit is None:
        return []
    ours = sorted({step for step in steps if step <= newest}, reverse=True)
    ranked = sorted(ours, key=lambda step: (step != newest, step != best))
    return sorted(ranked[limit:])


def check_load_best(config: TrainingConfig, retention: Retention) -> None:
    """Refuse a run that could not tell which checkpoint is the best, or would not have it any more.

    Raises:
        ConfigError: Nothing is evaluated, checkpoints are saved where nothing is evaluated, or only one is kept.
    """
    training, where = config.training, "training.trainer_kwargs.load_best_model_at_end"
    if not retention.load_best:
        return
    by_epoch = training.eval_strategy is Moments.EPOCH
    saves = training.save_epoch if by_epoch else training.save_steps > 0
    message = hint = ""
    if not config.data.validation.datasets or training.eval_strategy is Moments.NO:
        message, hint = "nothing is evaluated.", "Give data.validation and training.eval_strategy: steps or epoch."
    elif not saves:
        message = "no checkpoint is saved when an evaluation is done."
        hint = f"Set training.{'save_epoch: true' if by_epoch else 'save_steps to a multiple of eval_steps'}."
    elif not by_epoch and training.save_steps % training.eval_steps:
        message = f"save_steps {training.save_steps} is no multiple of eval_steps {training.eval_steps}."
        hint = "Then checkpoints would be saved whose loss is not known."
    elif retention.limit == 1:
        message, where = "the best and the newest checkpoint are two.", "training.trainer_kwargs.save_total_limit"
        hint = "Keep 2 or more."
    if message:
        raise ConfigError(Problem(code="rule", path=where, message=message, hint=hint))
