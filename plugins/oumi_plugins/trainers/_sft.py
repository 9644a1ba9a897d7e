"""What supervised fine-tuning adds to the loop: its examples and its loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from oumi_kernel.config import TrainTarget
from oumi_kernel.contracts import Plan, Row, Run, Session, Summary
from oumi_plugins.trainers._cache import Cache, user_folder
from oumi_plugins.trainers._encoding import Settings, limit_of
from oumi_plugins.trainers._examples import Examples
from oumi_plugins.trainers._loop import Loop
from oumi_plugins.trainers._parameters import parameter_groups
from oumi_plugins.trainers._preparation import Preparation
from oumi_plugins.trainers.sft import SftParams

IGNORE = -100


class SftTrainer:
    """Supervised fine-tuning (see `oumi_kernel.contracts.Trainer`)."""

    def __init__(self, params: SftParams, tokenizer: Any, run: Run) -> None:
        self._params, self._tokenizer, self._run = params, tokenizer, run
        ignore = run.config.training.label_ignore_index
        self._ignore = IGNORE if ignore is None else ignore

    def prepare(self, split: str, rows: Sequence[Row], target: TrainTarget) -> Examples:
        """Return examples of `input_ids` and `labels`, labels not shifted, which lie on disk (see `Examples`)."""
        data = getattr(self._run.config.data, split)
        settings = Settings(
            target=target,
            limit=limit_of(self._params.max_length, self._run.config.model.model_max_length, self._tokenizer),
            ignore=self._ignore,
            pack=data.pack,
            column=data.target_col,
        )
        return Preparation(split, self._tokenizer, settings, Cache(user_folder()))(rows)

    def plan(self, examples: Mapping[str, Sequence[Any]]) -> Plan:
        """Return the number of optimizer steps; the last window of an epoch may be smaller and counts."""
        training = self._run.config.training
        count = len(examples["train"])
        batch = training.per_device_train_batch_size
        per_epoch = math.ceil(math.ceil(count / batch) / training.gradient_accumulation_steps)
        by_epochs = math.ceil(round(per_epoch * training.num_train_epochs, 6))  # 0.55 * 100 is more than 55
        return Plan(
            total_steps=training.max_steps if training.max_steps > 0 else by_epochs,
            steps_per_epoch=per_epoch,
            examples=count,
            effective_batch_size=batch * training.gradient_accumulation_steps,
        )

    def parameter_groups(self, model: nn.Module) -> Sequence[dict[str, Any]]:
        """Return the groups of the trainable parameters."""
        return parameter_groups(model, self._run.config.training.weight_decay)

    def train(self, session: Session) -> Summary:
        """Run the loop."""
        return Loop(session, self, self._params.save_total_limit).train()

    def evaluate(self, session: Session) -> Mapping[str, float]:
        """Evaluate the validation split."""
        return Loop(session, self, None).evaluate() or {}

    def supervise(self, batch: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int]:
        """Return a batch with its supervised positions instead of labels, and their number.

        Worked out on the host: a mask on the device would have to be waited for. `predicting`, int64 (supervised,),
        are the positions, counted through rows of `tokens`, whose next token is `targets`, int64 (supervised,).
        """
        labels_BT = torch.full_like(batch["labels"], self._ignore)  # noqa: N806 - B batch, T tokens
        labels_BT[:, :-1] = batch["labels"][:, 1:]
        labels = labels_BT.flatten()
        predicting = (labels != self._ignore).nonzero().squeeze(1)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return inputs | {"predicting": predicting, "targets": labels[predicting]}, len(predicting)

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of the negative log-likelihoods of the supervised tokens, in nats, float32."""
        losses, _, _ = self.token_losses(model, batch)
        return losses.sum()

    def token_losses(
        self, model: nn.Module, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (losses float32, predictions int64, labels int64) of the supervised positions, each (tokens,)."""
        logits_BTV = model(  # noqa: N806 - B batch, T tokens, V vocabulary
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        logits, targets = logits_BTV.flatten(0, 1)[batch["predicting"]].float(), batch["targets"]
        return F.cross_entropy(logits, targets, reduction="none"), logits.detach().argmax(-1), targets
