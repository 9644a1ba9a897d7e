"""Conversations as text in which what is supervised stands between « and »."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from oumi_kernel.config import TrainTarget
from oumi_plugins.trainers._conversations import Renderer, sentence
from tests.conftest import QUICKSTART

TEMPLATES = Path(__file__).parent / "templates"
ALL = TrainTarget.ALL_ASSISTANT_TURNS
FINAL = TrainTarget.FINAL_ASSISTANT_TURN
EDGES: dict[str, str | None] = {"bos_token": "<s>", "eos_token": "</s>"}
MARKERS = re.compile(r"<[|\uff5c][^<>{}\s'\"]+[|\uff5c]>|<(?:start|end)_of_turn>|\[/?[A-Z_]{4,}\]")


def template_of(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_with(template: str, *markers: str, **special: str | None) -> Any:
    """Return the small tokenizer with a template and further markers as tokens of their own."""
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "model")
    tokenizer.chat_template = template
    for name, token in special.items():
        if token is None:
            setattr(tokenizer, name, token)
        else:
            tokenizer.add_special_tokens({name: token})
    tokenizer.add_special_tokens({"extra_special_tokens": list(markers)})
    return tokenizer


def tokenizer_of(name: str) -> Any:
    """Return the small tokenizer with a published template and all the markers in it."""
    template = template_of(name)
    return tokenizer_with(template, *sorted(set(MARKERS.findall(template))), **EDGES)


def marked(tokenizer: Any, messages: list[dict[str, Any]], target: TrainTarget = ALL, **row: Any) -> str:
    """Return the whole text with marks, after checking that ids equal those of the full rendering."""
    return marked_with_remarks(tokenizer, messages, target, **row)[0]


def marked_with_remarks(
    tokenizer: Any, messages: list[dict[str, Any]], target: TrainTarget = ALL, **row: Any
) -> tuple[str, list[str]]:
    variables = row.pop("variables", {})
    renderer = Renderer(tokenizer, target, variables)
    ids, mask = renderer({"messages": messages, **row}, "data.train, row 7")
    assert len(ids) == len(mask)
    assert ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **row, **variables)
    runs: list[tuple[bool, list[int]]] = []
    for token, kept in zip(ids, mask, strict=True):
        if not runs or runs[-1][0] != kept:
            runs.append((kept, []))
        runs[-1][1].append(token)
    text = "".join(f"«{decoded(tokenizer, run)}»" if kept else decoded(tokenizer, run) for kept, run in runs)
    return text, [sentence(what, *found) for what, found in renderer.take_remarks().items()]


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def supervised(tokenizer: Any, messages: list[dict[str, Any]], target: TrainTarget = ALL, **row: Any) -> list[str]:
    """Return the texts of the runs of supervised tokens, after the same check."""
    return re.findall("«(.*?)»", marked(tokenizer, messages, target, **row), flags=re.DOTALL)
