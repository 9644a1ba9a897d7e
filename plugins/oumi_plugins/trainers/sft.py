"""Supervised fine-tuning: next-token prediction on conversations or text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.contracts import Run, Trainer
from oumi_kernel.schema import Fraction, NonNegativeInt, PositiveInt

_NOT_YET = "no component does this yet."


class SftParams(Params):
    """Parameters of the trainer `sft`."""

    max_length: PositiveInt | None = None
    """Longest example, in tokens; longer ones are cut. Null: `model.model_max_length`."""

    label_smoothing_factor: Fraction = 0.0
    """Share of each target's probability that is spread over the whole vocabulary in training; evaluation has none."""

    save_total_limit: PositiveInt | None = None
    """Checkpoints to keep: the newest, from 2 on also the one with the lowest evaluation loss. Null: all."""

    load_best_model_at_end: bool = False
    """Whether the final model is that of the checkpoint with the lowest evaluation loss, not the last one."""

    async_save: bool = False
    """Whether training goes on while a checkpoint's files are checked and the disk is waited for."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does: stop ends the run before the step, skip goes on without it."""

    max_skipped_steps: NonNegativeInt | None = None
    """Steps of the whole run that may be skipped; one more ends it. Null: 3."""

    gradient_checkpointing_mode: Literal["full", "selective"] = "full"
    """What `training.enable_gradient_checkpointing` computes again: full layers, or all but products and attention."""

    gradient_checkpointing_every: PositiveInt = 1
    """Of so many layers one is computed again, the others keep their activations; 1: all are."""

    activation_offload: bool = False
    """Whether inputs of layers that are computed again wait in the host's memory. Needs that switch, and a GPU."""

    optimizer_in_backward: bool = False
    """Whether each weight is stepped as soon as its gradient is known, so that gradients are never there together."""

    compile_scope: Literal["model", "layers"] = "model"
    """What `training.compile` compiles: the whole model, or each layer, of which one is compiled and serves all."""

    ddp_bucket_cap_mb: PositiveInt | None = None
    """Megabytes of gradients that several processes exchange at once. Null: 25, torch's own."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Refuse a limit of what never happens."""
        if self.max_skipped_steps is not None and self.on_nonfinite != "skip":
            yield "max_skipped_steps", "needs on_nonfinite: skip; otherwise no step is skipped."


class Sft(Component):
    """Supervised fine-tuning: the mean negative log-likelihood of the supervised tokens of each optimizer step."""

    params_type = SftParams
    unserved = {
        "data.*.use_torchdata": "batches come from torch's own loader.",
        "data.test.datasets": "only train and validation are used.",
        "data.*.datasets[].transform_num_workers": "rows are prepared in one process.",
        "training.grpo": "it is for GRPO trainers.",
        "training.gkd": "it is for the GKD trainer.",
        "training.gold": "it is for the GOLD trainer.",
        "training.verl_config_overrides": "it is for verl.",
        "training.reward_function_kwargs": "it is for GRPO trainers.",
        "training.profiler": _NOT_YET,
        "training.telemetry": _NOT_YET,
        "training.include_alternative_mfu_metrics": _NOT_YET,
    }
    without_effect = {
        "training.include_performance_metrics": "tokens and tokens per second are always logged.",
        "data.*.datasets[].shuffle_buffer_size": "datasets are shuffled whole.",
        "training.dataloader_main_process_only": "each process reads its own share.",
    }

    @hookimpl
    def oumi_build_trainer(self, params: SftParams, tokenizer: Any, run: Run) -> Trainer:
        """Return the training method."""
        from oumi_plugins.trainers._sft import SftTrainer

        return SftTrainer(params, tokenizer, run)
