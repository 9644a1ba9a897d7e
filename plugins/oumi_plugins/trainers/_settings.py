"""What a run that goes on may change: nothing in silence.

Of a value that is no number only a digest is kept, for it may hold what came from the environment.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from oumi_kernel import CheckpointError, dump
from oumi_kernel.config import TrainingConfig
from oumi_kernel.contracts import Plan

_log = logging.getLogger("oumi_plugins.trainers.settings")
Setting = bool | int | float | str | None

OF_THE_STATE = {
    f"training.{name}"
    for name in (
        "learning_rate weight_decay adam_beta1 adam_beta2 adam_epsilon sgd_momentum optimizer_kwargs seed".split()
    )
}
"""What optimizer, schedule and random state bring along: another value would have no effect."""

WITHOUT_EFFECT = set(
    "output_dir run_name log_level dep_log_level log_examples log_model_summary logging_strategy logging_steps "
    "logging_first_step logging_dir enable_wandb enable_mlflow enable_tensorboard tracker_kwargs profiler telemetry "
    "include_performance_metrics include_alternative_mfu_metrics empty_device_cache_steps save_steps save_epoch "
    "save_final_model resume_from_checkpoint try_resume_from_last_checkpoint eval_strategy eval_steps "
    "metrics_function metrics_kwargs per_device_eval_batch_size dataloader_num_workers dataloader_prefetch_factor "
    "dataloader_persistent_workers dataloader_main_process_only max_steps num_train_epochs "
    "per_device_train_batch_size gradient_accumulation_steps".split()
)
"""What does not change what is learned, or does so only by the number of steps or of the examples of a step."""

OF_EVALUATION = {"eval_strategy", "eval_steps"}
"""What does change it where the learning rate follows the evaluation loss."""

_WITHOUT_EFFECT = {"save_total_limit", "load_best_model_at_end", "async_save", "ddp_bucket_cap_mb"} | {
    "gradient_checkpointing_mode",
    "gradient_checkpointing_every",
    "activation_offload",
    "optimizer_in_backward",
}
"""The same among the trainer's own parameters."""


def settings_of(config: TrainingConfig, plan: Plan, *, follows_evaluation: bool) -> dict[str, Setting]:
    """Return what the result of a run depends on, by key; evaluation is part of it where the learning rate follows."""
    tree = dump(config)
    without_effect = WITHOUT_EFFECT - OF_EVALUATION if follows_evaluation else WITHOUT_EFFECT
    training = {name: value for name, value in tree["training"].items() if name not in without_effect}
    training["trainer_kwargs"] = {k: v for k, v in training["trainer_kwargs"].items() if k not in _WITHOUT_EFFECT}
    model = {
        name: value for name, value in tree["model"].items() if name != "model_name"
    }  # weights are the checkpoint's
    values = {f"training.{name}": value for name, value in training.items()}
    values |= {f"model.{name}": value for name, value in model.items()}
    values |= {"data.train": tree["data"]["train"], "peft": tree["peft"]}
    values |= {"the number of steps": plan.total_steps, "the examples of a step": plan.effective_batch_size}
    if follows_evaluation:
        values["data.validation"] = tree["data"]["validation"]
    return {key: _kept(value) for key, value in values.items()}


def check_settings(folder: Path, saved: Mapping[str, Setting], now: Mapping[str, Setting]) -> None:
    """Say what is another than when a checkpoint was written, and refuse what would have no effect.

    Raises:
        CheckpointError: A setting that comes with the checkpoint's state was changed.
    """
    changed = [key for key, value in now.items() if key in saved and saved[key] != value]
    refused = [_change(key, saved[key], now[key]) for key in changed if key in OF_THE_STATE]
    if refused:
        raise CheckpointError(
            f"cannot go on from {folder}: {'; '.join(refused)}. Optimizer, schedule and random state go on with the "
            "checkpoint's, so this would have no effect. Set it back, or begin a new run from its weights "
            f"(model.model_name: {folder})."
        )
    if changed:
        said = "; ".join(_change(key, saved[key], now[key]) for key in changed)
        _log.warning("since %s was written: %s. The result will not be that of one run.", folder, said)


def _kept(value: object) -> Setting:
    if value is None or isinstance(value, bool | int | float):
        return value
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:16]


def _change(key: str, before: Setting, now: Setting) -> str:
    if isinstance(before, str) or isinstance(now, str):
        return f"{key} was changed"
    return f"{key} was {before}, now {now}"
