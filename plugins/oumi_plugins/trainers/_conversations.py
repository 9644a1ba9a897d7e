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
        self._marks_generation = bool(_GENERATION.search(tokenizer.chat_template))

    def __call__(self, row: Mapping[str, Any], place: str) -> tuple[list[int], list[bool]]:
        """Return (token ids, whether each is supervised) of one conversation.

        Raises:
            DataError: The template refuses the conversation, or does not show where an assistant's turn stands.
        """
        messages, tools = row["messages"], row.get("tools")
        text = self._render(messages, tools, place)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if self._target is TrainTarget.ALL_TOKENS:
            return ids, [True] * len(ids)
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if self._target is TrainTarget.FINAL_ASSISTANT_TURN:
            turns = turns[-1:]
        if self._marks_generation:
            return ids, self._marked(messages, tools, ids, final=self._target is TrainTarget.FINAL_ASSISTANT_TURN)
        spans = [self._span(messages, tools, turn, text, place) for turn in turns]
        return ids, _inside(offsets, spans)

    def _render(self, messages: Sequence[Any], tools: Any, place: str, *, prompt: bool = False) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise DataError(f"{place}: the chat template refuses this conversation: {error}") from error

    def _marked(self, messages: Sequence[Any], tools: Any, ids: list[int], *, final: bool) -> list[bool]:
        rendered = self._tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = [bool(value) for value in rendered["assistant_masks"]]
        if len(mask) != len(ids):
            raise DataError("the chat template renders another text with its generation marks than without.")
        if final and any(mask):
            last = len(mask) - mask[::-1].index(True)
            start = next((i + 1 for i in range(last - 1, -1, -1) if not mask[i]), 0)
            mask = [start <= position < last for position in range(len(mask))]
        return mask

    def _span(self, messages: Sequence[Any], tools: Any, turn: int, text: str, place: str) -> tuple[int, int]:
        """Return where in `text` an assistant's turn begins and ends: its text and its end-of-turn token."""
        before = self._render(messages[:turn], tools, place, prompt=True) if turn else ""
        after = self._render(messages[: turn + 1], tools, place)
        if not text.startswith(before) or not after.startswith(before) or not turn:
            raise DataError(
                f"{place}: turn {turn}: the chat template renders the turns before it differently when they stand "
                "alone, so which tokens are the assistant's cannot be told. Use a template with generation marks "
                "(model.chat_template), or train_target: all_tokens."
            )
        end = _common(after, text)
        closed = text[len(before) : end]
        if messages[turn]["content"].strip() not in closed:
            raise DataError(
                f"{place}: turn {turn}: the chat template renders the assistant's text differently when later turns "
                "follow. Use a template with generation marks (model.chat_template), or train_target: all_tokens."
            )
        return len(before), len(before) + len(closed.rstrip())


def _common(left: str, right: str) -> int:
    """Return the length of the longest common beginning."""
    if right.startswith(left):
        return len(left)
    return next(index for index, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1])


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
