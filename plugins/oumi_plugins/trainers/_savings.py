"""What a run does without so that it needs less memory: kept activations, gradients that are there together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config import MixedPrecisionDtype, TrainingParams
from oumi_kernel.contracts import Session
from oumi_plugins.trainers._recomputing import SWITCH, recompute_activations
from oumi_plugins.trainers.sft import SftParams

_log = logging.getLogger("oumi_plugins.trainers.savings")
PARAMS = "training.trainer_kwargs"


@runtime_checkable
class StepsInBackward(Protocol):
    """What a strategy may offer beside `oumi_kernel.contracts.Strategy`."""

    def step_in_backward(self) -> None:
        """From now on step each parameter in `backward`, when its gradient is complete; `step` then steps none."""
        ...


def check_savings(training: TrainingParams, params: SftParams) -> None:
    """Refuse what would save nothing or train otherwise, and say what has no effect.

    Raises:
        ConfigError: Problems of the switches together, all at once.
    """
    problems = [
        Problem(code="not-served", path=f"{PARAMS}.{name}", message=message, hint=hint)
        for name, message, hint in (*_of_offload(training, params), *_of_steps(training, params))
    ]
    if problems:
        raise ConfigError(problems)
    if training.enable_gradient_checkpointing:
        return
    for name, default in (("gradient_checkpointing_mode", "full"), ("gradient_checkpointing_every", 1)):
        if getattr(params, name) != default:
            _log.warning("%s.%s: no effect while %s is false.", PARAMS, name, SWITCH)


def save_memory(session: Session, params: SftParams) -> None:
    """Switch on what the configuration asks for, before the loop is built.

    Raises:
        ConfigError: The model or the strategy cannot do it.
    """
    training = session.run.config.training
    recompute_activations(session.prepared.model, training, params)
    if params.optimizer_in_backward:
        if not isinstance(session.strategy, StepsInBackward):
            message = f"the strategy {type(session.strategy).__name__} steps all weights at once."
            path = f"{PARAMS}.optimizer_in_backward"
            raise ConfigError(Problem(code="not-served", path=path, message=message))
        session.strategy.step_in_backward()


def _of_offload(training: TrainingParams, params: SftParams) -> Iterator[tuple[str, str, str]]:
    """Yield (parameter, problem, way out)."""
    if not params.activation_offload:
        return
    if not torch.cuda.is_available():
        yield "activation_offload", "there is no GPU: activations are in the host's memory already.", "Leave it out."
    elif not training.enable_gradient_checkpointing:
        message = "it is for the inputs of layers that are computed again, and none are."
        yield "activation_offload", message, f"Set {SWITCH}: true."


def _of_steps(training: TrainingParams, params: SftParams) -> Iterator[tuple[str, str, str]]:
    if not params.optimizer_in_backward:
        return
    name = "optimizer_in_backward"
    if training.gradient_accumulation_steps > 1:
        message = "a weight would be stepped after each micro-batch, not once for all of them."
        yield name, message, "Set training.gradient_accumulation_steps: 1."
    if training.max_grad_norm:
        message = "the norm of the whole gradient is not known before weights are stepped, so nothing can be clipped."
        yield name, message, "Set training.max_grad_norm: null."
    if params.on_nonfinite == "skip":
        message = "when a gradient is found not to be finite, weights were stepped that cannot be skipped any more."
        yield name, message, f"Set {PARAMS}.on_nonfinite: stop."
    if training.mixed_precision_dtype is MixedPrecisionDtype.FP16:
        message = "fp16 scales the loss, and must see the whole gradient before a step."
        yield name, message, "Use training.mixed_precision_dtype: bf16 or none."
    if training.enable_gradient_checkpointing and training.gradient_checkpointing_kwargs.get("use_reentrant"):
        message = "the reentrant kind of gradient checkpointing may complete a gradient in several parts."
        yield name, message, "Leave training.gradient_checkpointing_kwargs.use_reentrant out."
