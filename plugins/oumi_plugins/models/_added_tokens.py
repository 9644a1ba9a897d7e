"""Tokens that a configuration, or a larger tokenizer, adds to a model: those whose rows nothing has trained yet."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from oumi_kernel.config import ModelParams
from oumi_kernel.contracts import Run
from oumi_plugins.models._architecture import check_model
from oumi_plugins.models._tokenizer import load_tokenizer

_log = logging.getLogger("oumi_plugins.models.added_tokens")


def added_tokens(params: ModelParams, tokenizer: Any, run: Run) -> dict[str, int]:
    """Return token -> row, in the order of rows, of those that the model has not learned.

    They are the ones that the configuration adds, also where the model has spare rows, and those beyond its rows. A
    token that does nothing but pad is left out: it is masked, so its row is neither read nor predicted.
    """
    rows = check_model(params, run).get_text_config().vocab_size
    changed = params.tokenizer_kwargs or params.tokenizer_pad_token is not None
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    known = load_tokenizer(params, run, {}).get_vocab() if changed else vocabulary
    added = {token: row for token, row in vocabulary.items() if token not in known or row >= rows}
    pad = tokenizer.pad_token
    if pad in added and pad not in _with_another_role(tokenizer):
        _log.info("the token %s only pads: its row, %d, is not trained", pad, added.pop(pad))
    return dict(sorted(added.items(), key=lambda item: item[1]))


def _with_another_role(tokenizer: Any) -> Iterator[str]:
    """Yield the special tokens that stand for something else than padding."""
    for role, token in tokenizer.special_tokens_map.items():
        if role != "pad_token":
            yield from [token] if isinstance(token, str) else token
    yield from getattr(tokenizer, "extra_special_tokens", None) or ()
