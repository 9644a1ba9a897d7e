"""How a model computes the losses of a batch: flat where it can, with the head in chunks where it can.

Both are asked of the model itself, before training, on two short sequences: a model whose flat result is not that of
each sequence alone, or depends on the tokens of another (recurrent layers, positions that it does not take), gets
padded batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from oumi_kernel import ConfigError, Problem
from oumi_plugins.trainers import _attention, _batch_layout
from oumi_plugins.trainers._cross_entropy import summed_loss, token_losses

ASKED = (7, 5)
"""Tokens of the two sequences with which a model is asked."""
REFUSALS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What models raise for arguments that they do not take."""
VARLEN = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Attention implementations of transformers that take where sequences begin."""
LARGE = 1000.0
"""Size of logits with which the head is asked; caps of models are about 30."""
ROUNDING, REPEATED = (1e-4, 0.03), (1e-6, 1e-3)
"""Differences by which results of one computation may differ relative to their size, in float32 and in 16 bits: when it
is cut in another way, and when it is repeated."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HALF = (torch.bfloat16, torch.float16)
ORDINARY_LAYERS = {"full_attention", "sliding_attention"}

Asked = dict[str, Any]


class Forward:
    """The losses of batches of one model."""

    def __init__(self, model: nn.Module, *, ignore: int, smoothing: float = 0.0) -> None:
        """Begin with what every model can do: padded batches and all of its logits."""
        self._model, self._ignore, self._smoothing = _computing(model), ignore, smoothing
        self.is_flat = False
        self.why_padded = ""
        self._decoder: nn.Module | None = None
        self._head: nn.Linear | None = None

    def choose(self, attention: str | None, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Ask the model what it can do, and set its attention unless the configuration did.

        Args:
            attention: `model.attn_implementation` of the configuration.
            context: The context of a forward pass.
        """
        model = self._model
        was_training, own = model.training, getattr(_config(model), "_attn_implementation", None)
        model.eval()
        chosen = attention or self._fitting_attention(context)
        with torch.no_grad(), context() if chosen in VARLEN else nullcontext():
            alone = [_first_logits(model, _question(model, length)) for length in ASKED]
            if attention is None and chosen is not None:
                _attention.register()
                _inner(model).set_attn_implementation(chosen)
            self._ask_for_flat(alone)
            if not self.is_flat and chosen != attention:
                _inner(model).set_attn_implementation(own)
            self._ask_for_chunks()
        model.train(was_training)

    def compile(self) -> None:
        """Compile what computes most, for any number of tokens."""
        (self._decoder or self._model).compile(dynamic=True)

    def supervise(self, batch: Mapping[str, torch.Tensor]) -> tuple[_batch_layout.Laid, int]:
        """Return a collated batch as the model reads it, and its supervised tokens."""
        laid = _batch_layout.flat(batch, self._ignore) if self.is_flat else _batch_layout.padded(batch, self._ignore)
        return laid, len(laid["predicting"])

    def loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the sum of the (smoothed) negative log-likelihoods of the supervised tokens, in nats, float32."""
        if self._head is not None:
            return summed_loss(self._hidden(batch), self._head.weight, batch["targets"], self._smoothing)
        logits = self._logits(batch)
        return F.cross_entropy(logits, batch["targets"], reduction="sum", label_smoothing=self._smoothing)

    def token_losses(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (losses float32, predictions int64, labels int64) of the supervised positions, each (tokens,)."""
        targets = batch["targets"]
        if self._head is not None:
            return *token_losses(self._hidden(batch), self._head, targets), targets
        logits = self._logits(batch)
        return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1), targets

    def _hidden(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return what the head reads at the supervised positions, (supervised, width)."""
        assert self._decoder is not None  # noqa: S101 - set together with the head
        states = self._decoder(**self._inputs(batch)).last_hidden_state.flatten(0, 1)
        everywhere = len(batch["predicting"]) == len(states)
        return states if everywhere else states[batch["predicting"]]

    def _logits(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return float32 logits at the supervised positions, (supervised, vocabulary)."""
        logits = self._model(**self._inputs(batch)).logits[:, -batch["input_ids"].shape[1] :]  # not those of a prompt
        return logits.flatten(0, 1)[batch["predicting"]].float()

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if not self.is_flat:
            return {name: batch[name] for name in ("input_ids", "attention_mask")} | {"use_cache": False}
        return _flat_inputs(self._model, batch)

    def _fitting_attention(self, context: Callable[[], AbstractContextManager[Any]]) -> str | None:
        """Return the attention of flat batches: flash attention on a GPU that has it, else ours; None: the model's."""
        model = _inner(self._model)
        if not isinstance(model, PreTrainedModel) or not getattr(type(model), "_supports_attention_backend", False):
            return None
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        if kinds - ORDINARY_LAYERS or getattr(config, "attention_chunk_size", None):
            return None
        device = model.device.type
        with context():
            is_short = model.dtype in HALF or torch.is_autocast_enabled(device)
        can_flash = getattr(type(model), "_supports_flash_attn", False) and is_flash_attn_2_available()
        return VARLEN[0] if device == "cuda" and is_short and can_flash else _attention.NAME

    def _ask_for_flat(self, alone: list[torch.Tensor]) -> None:
        rows = [_question(self._model, length)["input_ids"][0] for length in ASKED]
        try:
            together, again = (self._together([first, rows[1]]) for first in (rows[0], rows[0].flip(0)))
        except REFUSALS as error:
            self.why_padded = _reason(error)
            return
        is_same = all(_same(left, right, ROUNDING) for left, right in zip(together, alone, strict=True))
        self.is_flat = is_same and _same(again[1], together[1], REPEATED)
        self.why_padded = "" if self.is_flat else "sequences laid end to end are not kept apart by this model"

    def _together(self, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the logits of each row, (tokens, vocabulary), from one flat batch of all."""
        asked, real = (
            nn.utils.rnn.pad_sequence(parts, batch_first=True) for parts in (rows, [torch.ones_like(r) for r in rows])
        )
        batch = _batch_layout.flat({"input_ids": asked, "attention_mask": real, "labels": asked}, self._ignore)
        logits = self._model(**_flat_inputs(self._model, _on(self._model, batch))).logits[0]
        return list(logits.split(batch["lengths"]))

    def _ask_for_chunks(self) -> None:
        """Find the head, and whether logits are what it makes of the decoder's output and nothing more.

        Asked with large logits: a cap on logits hardly changes small ones.
        """
        model = self._model
        if not isinstance(model, PreTrainedModel):
            return
        if "forward" in vars(model) or any(getattr(model, name) for name in HOOKS):
            return  # somebody wants to be there when the model is called
        head, decoder = model.get_output_embeddings(), model.get_decoder()
        if type(head) is not nn.Linear or "bias" in dict(head.named_parameters()) or decoder is model:
            return
        question = _question(model, ASKED[0])
        try:
            states = decoder(**question).last_hidden_state[0]
            factor = LARGE / head(states).float().square().mean().sqrt().clamp(min=1e-6)
            hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * factor.to(inputs[0].dtype),))
            try:
                logits = _logits(model, question)
            finally:
                hook.remove()
        except REFUSALS:
            return
        if states.dtype != torch.float16 and _same(head(states * factor.to(states.dtype)), logits, ROUNDING):
            self._decoder, self._head = decoder, head


def _question(model: Any, length: int) -> Asked:
    """Return a sequence of different tokens, the same each time."""
    vocabulary = _inner(model).get_input_embeddings().weight.shape[0]
    ids = (torch.arange(1, length + 1) * 7919 + length) % vocabulary
    device = next(model.parameters()).device
    return {"input_ids": ids.unsqueeze(0).to(device), "use_cache": False}


def _computing(model: Any) -> Any:
    """Return the model that computes: of one with an adapter inside its layers, the model that has these layers.

    An adapter that changes what the model reads, such as a prompt, computes around it.
    """
    config = getattr(model, "active_peft_config", None)
    return model if config is None or config.is_prompt_learning else model.get_base_model()


def _inner(model: Any) -> Any:
    """Return the model that was built, without what a strategy put around it."""
    while not hasattr(model, "get_input_embeddings") and hasattr(model, "module"):
        model = model.module
    return model


def _config(model: Any) -> Any:
    return getattr(_inner(model), "config", None)


def _logits(model: nn.Module, question: Asked) -> torch.Tensor:
    return model(**question).logits[0]


def _first_logits(model: nn.Module, question: Asked) -> torch.Tensor:
    """Return logits, where the model is asked for the first time.

    Raises:
        ConfigError: It cannot compute any.
    """
    try:
        return _logits(model, question)
    except REFUSALS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        message = f"the model cannot compute with weights of {next(model.parameters()).dtype}: {_reason(error)}."
        hint = "Try float32, with training.mixed_precision_dtype: bf16."
        raise ConfigError(
            Problem(code="not-served", path="model.torch_dtype_str", message=message, hint=hint)
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _flat_inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    implementation = getattr(_config(model), "_attn_implementation", None)
    if implementation == _attention.NAME:
        inputs["attention_mask"] = _attention.flat_mask(batch["input_ids"].device)
        inputs["cu_seq_lens_q"] = torch.tensor([0, *batch["lengths"]]).cumsum(0)  # on the host: nobody waits for it
    elif implementation in VARLEN:
        inputs |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), batch["cu_seq_lens"])
        inputs |= dict.fromkeys(("max_length_q", "max_length_k"), max(batch["lengths"]))
    return inputs


def _on(model: nn.Module, batch: Mapping[str, Any]) -> _batch_layout.Laid:
    device = next(model.parameters()).device
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _same(left: torch.Tensor, right: torch.Tensor, tolerances: tuple[float, float]) -> bool:
    """Return whether two results of the same computation differ by no more than rounding."""
    tolerance = tolerances[right.dtype in HALF]
    difference = (left.double() - right.double()).square().mean().sqrt()
    return bool(difference <= tolerance * right.double().square().mean().sqrt())
