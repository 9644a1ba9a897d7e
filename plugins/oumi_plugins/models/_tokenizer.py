"""Tokenizers: loading, padding token, length limit."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from oumi_kernel import ConfigError, Problem
from oumi_kernel.adapters import base_of
from oumi_kernel.config import ModelParams
from oumi_kernel.contracts import Run
from oumi_plugins.models._chat_template import set_chat_template
from oumi_plugins.models._names import not_found, revision
from oumi_plugins.models._template_variables import check_variables

ARGUMENTS = (
    "add_bos_token add_eos_token add_prefix_space additional_special_tokens chat_template "
    "clean_up_tokenization_spaces extra_special_tokens legacy model_input_names model_max_length padding_side "
    "split_special_tokens subfolder tokenizer_type truncation_side use_fast"
).split()
"""What a tokenizer takes without naming it in a signature."""


def build_tokenizer(params: ModelParams, run: Run) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model section, and set its padding token, length limit and chat template.

    Raises:
        ConfigError: It cannot be found, or an argument, the chat template or a variable of it is unknown.
    """
    tokenizer = load_tokenizer(params, run, {})
    if params.tokenizer_kwargs:
        _refuse_unknown_arguments(tokenizer, params)
        tokenizer = load_tokenizer(params, run, params.tokenizer_kwargs)
        _refuse_tokens_that_are_not_there(tokenizer, params)
    if params.model_max_length is not None:
        tokenizer.model_max_length = params.model_max_length
    if params.tokenizer_pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": params.tokenizer_pad_token})
    set_chat_template(tokenizer, params.chat_template, run)
    check_variables(tokenizer, params.chat_template_kwargs or {})
    return tokenizer


def load_tokenizer(params: ModelParams, run: Run, arguments: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model section as it was saved, changed by `arguments` alone.

    Raises:
        ConfigError: It cannot be found.
    """
    own = params.tokenizer_name is None or params.tokenizer_name == params.model_name
    name = run.locate(params.tokenizer_name or params.model_name)
    if own and not params.tokenizer_name and not (Path(name) / "tokenizer_config.json").is_file():
        name = base_of(run)  # an adapter that came without one
    try:
        return AutoTokenizer.from_pretrained(
            name,
            trust_remote_code=params.trust_remote_code,
            revision=revision(params) if own else "main",
            **arguments,
        )
    except (OSError, ValueError, TypeError, ImportError) as error:
        key = "model.tokenizer_name" if params.tokenizer_name else "model.model_name"
        raise not_found(key, name, "tokenizer", error) from error


def _refuse_unknown_arguments(tokenizer: PreTrainedTokenizerBase, params: ModelParams) -> None:
    """Refuse what the tokenizer's class would swallow without a word."""
    known = {*ARGUMENTS, *tokenizer.SPECIAL_TOKENS_ATTRIBUTES, *tokenizer.init_kwargs}
    for cls in type(tokenizer).__mro__[:-1]:
        known |= set(inspect.signature(cls.__init__).parameters) - {"self", "args", "kwargs"}
    for name in params.tokenizer_kwargs:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"did you mean '{close[0]}'?" if close else ""
            message = f"{type(tokenizer).__name__} knows no argument '{name}'."
            path = f"model.tokenizer_kwargs.{name}"
            raise ConfigError(Problem(code="unknown-key", path=path, message=message, hint=hint))


def _refuse_tokens_that_are_not_there(tokenizer: PreTrainedTokenizerBase, params: ModelParams) -> None:
    """Refuse special tokens that the library did not add: it takes one of the two names, and drops the other."""
    vocabulary = tokenizer.get_vocab()
    for name in ("additional_special_tokens", "extra_special_tokens"):
        asked = params.tokenizer_kwargs.get(name) or ()
        for token in asked.values() if isinstance(asked, dict) else asked:
            if str(token) not in vocabulary:
                message = f"'{token}' was not added: this tokenizer has special tokens of its own under another name."
                path = f"model.tokenizer_kwargs.{name}"
                hint = "Write extra_special_tokens."
                raise ConfigError(Problem(code="no-effect", path=path, message=message, hint=hint))
