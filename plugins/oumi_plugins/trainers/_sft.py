"""What supervised fine-tuning adds to the loop: its examples and its loss."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import nn

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config import TrainTarget
from oumi_kernel.contracts import Plan, Row, Run, Session, Summary
from oumi_kernel.plugins.slots import filled_splits
from oumi_kernel.rehearsal import Estimate, Lengths, PreviewedExample, token_view
from oumi_plugins.trainers._batches import IGNORE
from oumi_plugins.trainers._cache import Cache, user_folder
from oumi_plugins.trainers._compiling import repeated_layers
from oumi_plugins.trainers._encoding import Settings, limit_of
from oumi_plugins.trainers._estimate import estimate
from oumi_plugins.trainers._examples import Examples, token_counts
from oumi_plugins.trainers._forward import Forward
from oumi_plugins.trainers._loop import Loop
from oumi_plugins.trainers._miniature import Unasked, miniature
from oumi_plugins.trainers._order import balance_of, epoch_order
from oumi_plugins.trainers._parameters import parameter_groups
from oumi_plugins.trainers._preparation import Preparation
from oumi_plugins.trainers._preview import lengths_of, previews, tokens_of
from oumi_plugins.trainers._retention import Retention, check_load_best
from oumi_plugins.trainers._savings import check_savings, save_memory
from oumi_plugins.trainers._small import NotSmall, small_model
from oumi_plugins.trainers.sft import SftParams

_log = logging.getLogger("oumi_plugins.trainers.sft")
MAX_SKIPPED = 3


class SftTrainer:
    """Supervised fine-tuning (see `oumi_kernel.contracts.Trainer`)."""

    def __init__(self, params: SftParams, tokenizer: Any, run: Run) -> None:
        self._params, self._tokenizer, self._run = params, tokenizer, run
        self._retention = Retention(
            limit=params.save_total_limit, load_best=params.load_best_model_at_end, asynchronous=params.async_save
        )
        check_load_best(run.config, self._retention)
        check_savings(run.config.training, params)
        if params.compile_scope != "model" and not run.config.training.compile:
            _log.warning("training.trainer_kwargs.compile_scope: no effect while training.compile is false.")
        if params.ddp_bucket_cap_mb and run.world.size == 1:
            _log.warning("training.trainer_kwargs.ddp_bucket_cap_mb: no effect: there is one process.")
        ignore = run.config.training.label_ignore_index
        self._ignore = IGNORE if ignore is None else ignore

    def prepare(self, split: str, rows: Sequence[Row], target: TrainTarget) -> Examples:
        """Return examples of `input_ids` and `labels`, labels not shifted, which lie on disk (see `Examples`)."""
        data = getattr(self._run.config.data, split)
        if data.stream and not data.pack:
            _log.warning("data.%s.stream: no effect: rows are read one after another with or without it.", split)
        settings = Settings(
            target=target,
            variables=self._run.config.model.chat_template_kwargs or {},
            limit=limit_of(self._params.max_length, self._run.config.model.model_max_length, self._tokenizer),
            ignore=self._ignore,
            pack=data.pack,
            column=data.target_col,
        )
        return Preparation(split, self._tokenizer, settings, Cache(user_folder()))(rows)

    def plan(self, examples: Mapping[str, Sequence[Any]]) -> Plan:
        """Return the number of optimizer steps; the last window of an epoch may be smaller and counts."""
        training, world = self._run.config.training, self._run.world
        count = len(examples["train"])
        together = training.per_device_train_batch_size * world.size
        per_epoch = math.ceil(math.ceil(count / together) / training.gradient_accumulation_steps)
        by_epochs = math.ceil(round(per_epoch * training.num_train_epochs, 6))  # 0.55 * 100 is more than 55
        return Plan(
            total_steps=training.max_steps if training.max_steps > 0 else by_epochs,
            steps_per_epoch=per_epoch,
            examples=count,
            effective_batch_size=together * training.gradient_accumulation_steps,
            balance=balance_of(token_counts(examples["train"]), training, world) if world.size > 1 else None,
        )

    def parameter_groups(self, model: nn.Module) -> Sequence[dict[str, Any]]:
        """Return the groups of the trainable parameters."""
        return parameter_groups(model, self._run.config.training.weight_decay)

    def preview(self, rows: Iterable[Row], examples: Sequence[Any], count: int) -> Sequence[PreviewedExample]:
        """Return the first examples of a split with their rows."""
        return previews(self._tokenizer, rows, examples, count, self._ignore)

    def lengths(self, examples: Sequence[Any]) -> Lengths:
        """Return how long the examples of a split are."""
        return lengths_of(examples, self._run.config.training, self._ignore, self._run.world)

    def miniature(self, skeleton: nn.Module) -> nn.Module:
        """Return a model like `skeleton` whose every parameter is small."""
        return miniature(skeleton)

    def rehearse(self, session: Session, skeleton: nn.Module) -> Estimate:
        """Do what training does before its first step, and estimate what it needs."""
        if self._run.config.training.compile and self._params.compile_scope == "layers":
            repeated_layers(skeleton)
        unasked = self._ask_in_small(session, skeleton)
        save_memory(session, self._params)
        notes, unchecked = Loop(session, Unasked(self._ignore), self._retention).rehearse(skeleton)
        needs = estimate(session, skeleton, self._params, self._forward, notes)
        return msgspec.structs.replace(needs, unchecked=(*unasked, *unchecked))

    def train(self, session: Session) -> Summary:
        """Run the loop."""
        if self._run.config.training.log_examples and self._run.world.is_main:
            self._log_first_batch(session)
        allowed = self._params.max_skipped_steps
        allowed = MAX_SKIPPED if allowed is None else allowed
        allowed = allowed if self._params.on_nonfinite == "skip" else 0
        save_memory(session, self._params)
        return Loop(session, self, self._retention, allowed).train()

    def begin(self, session: Session) -> None:
        """Ask the model how it computes the losses of a batch, and say so where batches must be padded.

        Raises:
            ConfigError: Packs are asked for, and the model would read across their borders.
        """
        with torch.no_grad():
            self._forward = session.strategy.compute(self._asked, session.prepared.model, session)
        self._check_packs(self._forward)

    def _asked(self, model: nn.Module, session: Session) -> Forward:
        forward = Forward(model, ignore=self._ignore, smoothing=self._params.label_smoothing_factor)
        forward.choose(self._run.config.model.attn_implementation, session.strategy.forward_context)
        return forward

    def _ask_in_small(self, session: Session, skeleton: nn.Module) -> list[str]:
        """Do what `begin` does with a small model of the same architecture; return what that does not tell."""
        self._forward = Forward(skeleton, ignore=self._ignore)
        try:
            small = small_model(skeleton, next(session.prepared.model.parameters()).device)
        except NotSmall as error:
            return [f"whether this model keeps examples apart that share a batch without padding: {error}."]
        self._forward = self._asked(small, session)
        self._check_packs(self._forward)
        return []

    def _check_packs(self, forward: Forward) -> None:
        splits = dict(filled_splits(self._run.config))
        if forward.is_flat:
            for name in (name for name, split in splits.items() if split.collator_kwargs.get("pad_to_multiple_of")):
                _log.warning("data.%s.collator_kwargs.pad_to_multiple_of: no effect: padding is not computed.", name)
            return
        packed = [name for name, split in splits.items() if split.pack]
        if packed:
            message = f"this model cannot keep packed examples apart: {forward.why_padded}."
            hint = "Set pack: false, or attn_implementation: null, sdpa or eager of a model without recurrent layers."
            raise ConfigError(Problem(code="not-served", path=f"data.{packed[0]}.pack", message=message, hint=hint))
        _log.info("batches are padded: %s", forward.why_padded)

    def compile(self) -> None:
        """Compile the model or its layers."""
        self._forward.compile(self._params.compile_scope)

    def supervise(self, batch: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], int]:
        """Return a collated batch on the host as the model reads it, and its supervised tokens."""
        return self._forward.supervise(batch)

    def loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the sum of the negative log-likelihoods of the supervised tokens, in nats, float32."""
        return self._forward.loss(batch)

    def token_losses(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (losses float32, predictions int64, labels int64) of the supervised positions, each (tokens,)."""
        return self._forward.token_losses(batch)

    def _log_first_batch(self, session: Session) -> None:
        examples, training = session.examples["train"], self._run.config.training
        first = epoch_order(len(examples), training.data_seed, 0)[: training.per_device_train_batch_size]
        _log.info("the first batch as id:token, in brackets where the loss is:")
        for index in first:
            view = token_view(tokens_of(self._tokenizer, examples[index], self._ignore))
            _log.info("example %d: %s", index, " ".join(text for text, _ in view))
