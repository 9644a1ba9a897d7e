"""Tokenizers: loading, padding token, length limit, chat template."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config import ModelParams
from oumi_kernel.contracts import Run

TEMPLATES = Path(__file__).parent / "chat_templates"


def build_tokenizer(params: ModelParams, run: Run) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model section.

    Raises:
        ConfigError: It cannot be found, an argument or a chat template is unknown.
    """
    key = "model.tokenizer_name" if params.tokenizer_name else "model.model_name"
    name = run.locate(params.tokenizer_name or params.model_name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            trust_remote_code=params.trust_remote_code,
            revision=params.model_revision or "main",
            **params.tokenizer_kwargs,
        )
    except (OSError, ValueError) as error:
        raise not_found(key, name, "tokenizer", error) from error
    _refuse_unknown_arguments(tokenizer, params)
    if params.model_max_length is not None:
        tokenizer.model_max_length = params.model_max_length
    if params.tokenizer_pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": params.tokenizer_pad_token})
    template = read_template(params.chat_template, run)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def read_template(name: str | None, run: Run) -> str | None:
    """Return the text of a named chat template, or None for the tokenizer's own.

    Raises:
        ConfigError: There is no template of that name.
    """
    if name is None or name == "auto":
        return None
    for path in (Path(run.locate(name)), TEMPLATES / f"{name}.jinja"):
        if path.suffix == ".jinja" and path.is_file():
            return path.read_text(encoding="utf-8").removesuffix("\n")
    names = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    message = f"no chat template is named '{name}', and there is no such .jinja file."
    way_out = f"{hint}Shipped: {', '.join(names)}; null takes the tokenizer's own."
    raise ConfigError(Problem(code="unknown-name", path="model.chat_template", message=message, hint=way_out))


def not_found(key: str, name: str, what: str, error: Exception) -> ConfigError:
    """Return the error for a model or tokenizer that could not be loaded."""
    if Path(name).is_dir():
        message = f"the folder '{name}' holds no {what} that transformers can load: {_first_line(error)}"
        hint = "It needs config.json and the tokenizer's files, as save_pretrained writes them."
    elif name.startswith(("/", ".")):
        message, hint = f"there is no folder '{name}'.", "Check the path; ./name is read beside the configuration file."
    else:
        message = f"'{name}' is no folder here, and the {what} could not be had from the hub: {_first_line(error)}"
        hint = "Check the name and the network, or give the path of a folder."
    return ConfigError(Problem(code="no-model", path=key, message=message, hint=hint))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _refuse_unknown_arguments(tokenizer: PreTrainedTokenizerBase, params: ModelParams) -> None:
    """Refuse what the tokenizer's class would swallow without a word."""
    known: set[str] = {"use_fast", "legacy", "subfolder"} | set(tokenizer.SPECIAL_TOKENS_ATTRIBUTES)
    for cls in type(tokenizer).__mro__:
        if cls is not object:
            known |= set(inspect.signature(cls.__init__).parameters) - {"self", "args", "kwargs"}
    known |= {
        "padding_side",
        "truncation_side",
        "model_max_length",
        "model_input_names",
        "clean_up_tokenization_spaces",
    }
    for name in params.tokenizer_kwargs:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"did you mean '{close[0]}'?" if close else ""
            message = f"{type(tokenizer).__name__} knows no argument '{name}'."
            path = f"model.tokenizer_kwargs.{name}"
            raise ConfigError(Problem(code="unknown-key", path=path, message=message, hint=hint))


def new_tokens(tokenizer: Any, vocabulary: int) -> int:
    """Return how many tokens the tokenizer has beyond the model's `vocabulary`."""
    return max(0, len(tokenizer) - vocabulary)
