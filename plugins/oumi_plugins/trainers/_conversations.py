"""One full rendering of a conversation -> token ids and which of them are supervised.

The text of the whole conversation is rendered once by the chat template and tokenised once; nothing is tokenised in
pieces, so ids are exactly those of `apply_chat_template`. Where an assistant's turn stands in that text is read off the
template's `{% generation %}` blocks if it has them, otherwise off renderings of the conversation's beginnings, which
must be prefixes of the full text; where they are not, that is an error and never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from oumi_kernel import ConfigError, DataError, Problem
from oumi_kernel.config import TrainTarget

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_WAY_OUT = "Use a template with generation marks (model.chat_template), or train_target: all_tokens."


class Renderer:
    """Turns conversations into token ids with a mask."""

    def __init__(self, tokenizer: Any, target: TrainTarget) -> None:
        if not tokenizer.is_fast:
            message = "this tokenizer cannot say where in the text a token stands; a fast tokenizer is needed."
            raise ConfigError(Problem(code="not-served", path="model.tokenizer_name", message=message))
        if not tokenizer.chat_template:
            message = "the tokenizer has no chat template, and the data holds conversations."
            hint = "Name one, such as chat_ml, or give the path of a .jinja file."
            raise ConfigError(Problem(code="missing-key", path="model.chat_template", message=message, hint=hint))
        self._tokenizer, self._target = tokenizer, target
        names = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
        # What closes a turn whatever follows it: one of the tokenizer's own markers, or a word that ends before the
        # text goes on in another way.
        closings = "|".join((*map(re.escape, names), r"\S+(?=\s)"))
        self._marker = re.compile(rf"\s*(?:{closings})")

    def __call__(self, row: Mapping[str, Any], place: str) -> tuple[list[int], list[bool]]:
        """Return (token ids, whether each is supervised) of one conversation.

        Raises:
            DataError: The template refuses the conversation, or does not show where an assistant's turn stands.
        """
        messages, tools = list(row["messages"]), row.get("tools") or None
        text = self._render(messages, tools, place)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if self._target is TrainTarget.ALL_TOKENS:
            return ids, [True] * len(ids)
        final = self._target is TrainTarget.FINAL_ASSISTANT_TURN
        if _GENERATION.search(self._tokenizer.get_chat_template(tools=tools)):
            mask = self._marked(messages, tools, ids, place)
            return ids, _last_run(mask) if final else mask
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [self._span(messages, tools, turn, text, place) for turn in (turns[-1:] if final else turns)]
        return ids, _inside(offsets, spans)

    def _render(self, messages: Sequence[Any], tools: Any, place: str, *, prompt: bool = False) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise DataError(f"{place}: the chat template refuses this conversation: {error}") from error

    def _marked(self, messages: Sequence[Any], tools: Any, ids: list[int], place: str) -> list[bool]:
        rendered = self._tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        if list(rendered["input_ids"]) != ids:
            raise DataError(f"{place}: the chat template renders another text with its generation marks than without.")
        return [bool(value) for value in rendered["assistant_masks"]]

    def _span(self, messages: Sequence[Any], tools: Any, turn: int, text: str, place: str) -> tuple[int, int]:
        """Return where in `text` an assistant's turn begins and ends: its text and its end-of-turn token."""
        start = self._start(messages, tools, turn, text, place)
        after = self._render(messages[: turn + 1], tools, place)
        if not after.startswith(text[:start]):
            raise DataError(
                f"{place}: turn {turn}: the chat template renders the turns before it differently when they stand "
                f"alone, so which tokens are the assistant's cannot be told. {_WAY_OUT}"
            )
        is_prefix = text.startswith(after)
        closed = (after if is_prefix else text[: _common(after, text)])[start:]
        said = _said(messages[turn])
        lead = len(closed) - len(closed.lstrip())
        if said is not None and closed.startswith(said, lead):
            told = lead + len(said)
            marker = re.compile(r"\s*\S+") if is_prefix else self._marker
            found = marker.match(closed, told)
            return start, start + (found.end() if found else told)
        if not is_prefix:
            raise DataError(
                f"{place}: turn {turn}: the chat template renders the assistant's turn differently when later turns "
                f"follow. {_WAY_OUT}"
            )
        return start, start + len(closed.rstrip())

    def _start(self, messages: Sequence[Any], tools: Any, turn: int, text: str, place: str) -> int:
        """Return where in `text` the header of an assistant's turn ends."""
        if turn:
            before = self._render(messages[:turn], tools, place, prompt=True)
            if text.startswith(before):
                return len(before)
        else:  # nothing stands before it; the header is what a generation prompt adds to some other conversation
            question = [{"role": "user", "content": "?"}]
            with_header = self._render(question, tools, place, prompt=True)
            header = with_header.removeprefix(self._render(question, tools, place))
            found = text.find(header)
            if len(header) < len(with_header) and found >= 0:
                return found + len(header)
        raise DataError(
            f"{place}: turn {turn}: the chat template's generation prompt is not how the full conversation begins that "
            f"turn, so which tokens are the assistant's cannot be told. {_WAY_OUT}"
        )


def _said(message: Mapping[str, Any]) -> str | None:
    """Return a turn's text if that is all there is to it; None where the template adds calls or reasoning."""
    content = message.get("content")
    if message.get("tool_calls") or message.get("reasoning_content") or not isinstance(content, str):
        return None
    return content.strip()


def _common(left: str, right: str) -> int:
    """Return the length of the longest common beginning of two texts, neither of which begins with the other."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, pair in pairs if pair[0] != pair[1]), min(len(left), len(right)))


def _last_run(mask: Sequence[bool]) -> list[bool]:
    """Return the mask with its last unbroken run alone."""
    kept = [False] * len(mask)
    position = len(mask) - 1
    while position >= 0 and not mask[position]:
        position -= 1
    while position >= 0 and mask[position]:
        kept[position] = True
        position -= 1
    return kept


def _inside(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    mask = [False] * len(offsets)
    position = 0
    for start, end in spans:
        while position < len(offsets) and offsets[position][0] < start:
            position += 1
        while position < len(offsets) and offsets[position][0] < end:
            mask[position] = offsets[position][1] > offsets[position][0]
            position += 1
    return mask
