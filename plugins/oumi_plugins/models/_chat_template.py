"""Chat templates: the shipped ones by name, the user's own by path."""

from __future__ import annotations

import difflib
from pathlib import Path

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from oumi_kernel import ConfigError, Problem
from oumi_kernel.contracts import Run

FOLDER = Path(__file__).parent / "chat_templates"
WITH_IMAGES = ("internvl3", "llava", "molmo", "qwen2-vl-instruct", "qwen3-vl-instruct")
"""Names that configurations use for templates of vision-language models."""


def set_chat_template(tokenizer: PreTrainedTokenizerBase, name: str | None, run: Run) -> None:
    """Give the tokenizer the template that `name` means; null and `auto` leave it its own.

    Raises:
        ConfigError: There is no such template, it is not UTF-8 text, or it is no Jinja.
    """
    if name is None or name == "auto":
        return
    path = _find(name, run)
    try:
        tokenizer.chat_template = path.read_text(encoding="utf-8").removesuffix("\n")
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise _problem("no-template", f"{path}:{error.lineno}: {error.message}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _problem("no-template", f"{path} cannot be read: {error}.") from error
    except TemplateError:  # a template may refuse one turn alone; whether it renders the data is seen with the data
        return


def _find(name: str, run: Run) -> Path:
    shipped = FOLDER / f"{name}.jinja"
    if shipped.is_file():
        return shipped
    path = Path(run.locate(name))
    if path.suffix == ".jinja":
        if path.is_file():
            return path
        raise _problem("no-template", f"there is no file '{path}'.", "./name is read beside the configuration file.")
    if name in WITH_IMAGES:
        message = f"'{name}' is for vision-language models; templates of those are not there yet."
        raise _problem("not-served", message, "auto takes the tokenizer's own.")
    names = sorted(path.stem for path in FOLDER.glob("*.jinja"))
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    message = f"no chat template is named '{name}', and it is no path of a .jinja file."
    raise _problem("unknown-name", message, f"{hint}Shipped: {', '.join(names)}; auto takes the tokenizer's own.")


def _problem(code: str, message: str, hint: str = "") -> ConfigError:
    return ConfigError(Problem(code=code, path="model.chat_template", message=message, hint=hint))
