"""Attention that stays inside each sequence of a flat batch, under transformers' own door for implementations.

Sequences lie end to end in one row. Each is attended to alone, so nothing is masked away that was computed first, and
no mask of all tokens by all tokens exists. On a CPU explicit matrix products are fastest up to a few hundred tokens;
beyond, and on a GPU, torch's fused attention takes each sequence.

Shapes: H heads, K heads of keys and values, T tokens of the batch, L tokens of one sequence, D width of a head.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "oumi_rows"
LONGEST_EXPLICIT = 512
"""Longest sequence, in tokens, whose scores are written out on a CPU."""
_UNKNOWN = ("position_bias", "head_mask")
"""Arguments that change the scores in ways not known here."""


def flat_mask(device: torch.device) -> torch.Tensor:
    """Return what a flat batch gives as its attention mask, bool (1, 1, 1, 1): nothing is masked by it.

    A mask of four dimensions is passed on as it is. Without one, transformers looks at the positions on the host to
    find out whether sequences are packed, which on a GPU waits for the device in every forward pass.
    """
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def register() -> None:
    """Make the implementation known to transformers by its name; doing it again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def forget_masks() -> None:
    """Let go of the masks that are kept for further batches."""
    _bias.cache_clear()


@torch.compiler.disable
def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return the output of causal attention inside each sequence.

    Args:
        module: The attention module of the model.
        query: Queries, (1, H, T, D).
        key: Keys, (1, K, T, D).
        value: Values, (1, K, T, D).
        attention_mask: That of `flat_mask` for a flat batch; any other batch goes to `sdpa` with its mask.
        options: `cu_seq_lens_q`, a numpy array (sequences + 1,), where each sequence begins and the last one ends;
            `scaling`, `dropout`, `sliding_window`, `softcap` and `s_aux` as transformers passes them.

    Returns:
        The output, (1, T, H, D), and no weights.

    Raises:
        NotImplementedError: The model asks for something that this attention does not do.

    A compiler leaves it out: it would make another graph for every mixture of lengths.
    """
    bounds = options.pop("cu_seq_lens_q", None)
    if bounds is None and attention_mask is None and query.shape[0] == 1:
        bounds = np.array([0, query.shape[2]])
    if bounds is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # pyright: ignore[reportReturnType]
    for name in _UNKNOWN:
        if options.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    lengths: list[int] = np.diff(bounds).tolist()
    parts = zip(*(_cast(states[0]).split(lengths, dim=1) for states in (query, key, value)), strict=True)
    outputs = [_one(*part, options=options) for part in parts]
    return torch.cat(outputs, dim=1).transpose(0, 1).unsqueeze(0), None


def _cast(states: torch.Tensor) -> torch.Tensor:
    """Return states in autocast's number format where it is on: all sequences at once, not each by itself."""
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states


def _one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, options: dict[str, Any]) -> torch.Tensor:
    """Return the output of one sequence, (H, L, D), from queries (H, L, D) and keys and values (K, L, D)."""
    length, window = query.shape[1], options.get("sliding_window")
    window = window if window is not None and window < length else None
    scaling = query.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
    dropout = options.get("dropout", 0.0)
    changes_scores = options.get("softcap") is not None or options.get("s_aux") is not None
    if changes_scores or (query.device.type == "cpu" and length <= LONGEST_EXPLICIT):
        return _explicit(query, key, value, (scaling, dropout, window), options)
    allowed = None if window is None else _allowed(length, window, query.device)
    return F.scaled_dot_product_attention(
        query.unsqueeze(0),
        key.unsqueeze(0),
        value.unsqueeze(0),
        attn_mask=allowed,
        dropout_p=dropout,
        is_causal=allowed is None,
        scale=scaling,
        enable_gqa=query.shape[0] != key.shape[0],
    ).squeeze(0)


def _explicit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    settings: tuple[float, float, int | None],
    options: dict[str, Any],
) -> torch.Tensor:
    """Do the same with the scores written out: heads that share keys are one matrix product."""
    scaling, dropout, window = settings
    heads, length, width = query.shape
    groups = key.shape[0]
    size = -(-length // LONGEST_EXPLICIT) * LONGEST_EXPLICIT
    bias = _bias(size, window, query.dtype, query.device)[:length, :length]
    stacked = query.reshape(groups, heads // groups * length, width)
    cap, sinks = options.get("softcap"), options.get("s_aux")
    if cap is None:
        tall = bias if heads == groups else bias.repeat(heads // groups, 1)
        scores = torch.baddbmm(tall, stacked, key.transpose(1, 2), alpha=scaling)
    else:
        scores = torch.bmm(stacked, key.transpose(1, 2)) * scaling
        scores = (scores / cap).tanh() * cap + bias.repeat(heads // groups, 1)
    if sinks is not None:
        column = sinks.view(groups, heads // groups, 1).expand(-1, -1, length).reshape(groups, -1, 1)
        scores = torch.cat([scores, column.to(scores.dtype)], dim=-1)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    weights = F.dropout(weights[..., :length], dropout) if dropout else weights[..., :length]
    return torch.bmm(weights, value).view(heads, length, -1)


@lru_cache(maxsize=4)
def _bias(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return what is added to scores, (size, size): nothing where a query may see the key, else minus infinity."""
    return torch.zeros(size, size, dtype=dtype, device=device).masked_fill_(
        ~_allowed(size, window, device), float("-inf")
    )


def _allowed(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which keys each query may see, bool (L, L): itself and those before it, at most `window` in all."""
    allowed = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return allowed if window is None else allowed.triu(1 - window)
