"""How the trained model will be asked to generate: when it stops, and settings that a library accepts."""

from __future__ import annotations

import copy
import logging
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import GenerationConfig

_log = logging.getLogger(__name__)


def generation_settings(model: Any, tokenizer: Any) -> GenerationConfig | None:
    """Return the model's generation settings, made to fit the chat template that it was trained with.

    The token that ends a turn is added to the tokens that stop generation: a model that was trained on another
    template than its own would never stop. The padding token becomes the tokenizer's. Sampling values without
    sampling, which `save_pretrained` refuses, switch sampling on: whoever wrote them meant it.
    """
    if getattr(model, "generation_config", None) is None:
        return None
    settings = copy.deepcopy(model.generation_config)
    stops = settings.eos_token_id
    known = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    end = _end_of_turn(tokenizer)
    if end is not None and end not in known:
        settings.eos_token_id = [*known, end] if known else end
    if tokenizer.pad_token_id is not None:
        settings.pad_token_id = tokenizer.pad_token_id
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True
        _log.info("generation_config.json: do_sample is on, since it holds sampling values.")
    return settings


def _end_of_turn(tokenizer: Any) -> int | None:
    """Return the special token with which the chat template closes an assistant's turn, if there is one."""
    if not tokenizer.chat_template:
        return tokenizer.eos_token_id
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError, KeyError):
        return None  # the template wants other turns; its end of turn is not known from these
    if turns[1]["content"] not in text:
        return None
    after = tokenizer(text[text.rfind("!") + 1 :], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((token for token in after if token in special), None)
