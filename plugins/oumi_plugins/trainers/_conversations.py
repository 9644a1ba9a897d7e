"""One full rendering of a conversation -> token ids and which of them are supervised.

The text of the whole conversation is rendered once by the chat template and tokenised once; nothing is tokenised in
pieces, so ids are exactly those of `apply_chat_template`. Supervised is what an assistant writes: what follows the
header that a generation prompt would write, up to and with what ends the turn. Where that stands in the text is found
by `_turns`; the template's `{% generation %}` blocks, if it has them, choose among it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oumi_kernel import ConfigError, DataError, Problem
from oumi_kernel.config import TrainTarget
from oumi_plugins.trainers._generation_blocks import choose, has_blocks, stray
from oumi_plugins.trainers._masks import Span, mask
from oumi_plugins.trainers._template import REFUSALS, Template
from oumi_plugins.trainers._turns import Lost, Turn, Turns

_WAY_OUT = "Use another template (model.chat_template), leave the row out, or set train_target: all_tokens."


def sentence(what: str, count: int, place: str) -> str:
    """Return a remark in words."""
    return f"the chat template {what}: {count} times, first in {place}."


class Renderer:
    """Turns conversations into token ids with a mask."""

    def __init__(self, tokenizer: Any, target: TrainTarget, variables: Mapping[str, Any] | None = None) -> None:
        """Take a tokenizer with its template; `variables` are further ones for the template."""
        if not tokenizer.is_fast:
            message = "this tokenizer cannot say where in the text a token stands; a fast tokenizer is needed."
            raise ConfigError(Problem(code="not-served", path="model.tokenizer_name", message=message))
        if not tokenizer.chat_template:
            message = "the tokenizer has no chat template, and the data holds conversations."
            hint = "Name one, such as chat_ml, or give the path of a .jinja file."
            raise ConfigError(Problem(code="missing-key", path="model.chat_template", message=message, hint=hint))
        self._tokenizer, self._target = tokenizer, target
        self._template = Template(tokenizer, variables or {})
        self._remarks: dict[str, tuple[int, str]] = {}

    def __call__(self, row: Mapping[str, Any], place: str) -> tuple[list[int], list[bool]]:
        """Return (token ids, whether each is supervised) of one conversation.

        Raises:
            DataError: The template refuses the conversation, or does not show where an assistant's turn stands.
        """
        return self.batch([row], [place])[0]

    def batch(self, rows: Sequence[Mapping[str, Any]], places: Sequence[str]) -> list[tuple[list[int], list[bool]]]:
        """Return what a call for each row would, tokenised together, which is faster.

        Raises:
            DataError: As for one row; it names the row.
        """
        texts: list[str] = []
        spans: list[list[Span]] = []
        for row, place in zip(rows, places, strict=True):
            messages, tools = list(row["messages"]), row.get("tools") or None
            texts.append(self._render(messages, tools, place))
            spans.append(self._spans(messages, tools, texts[-1], place))
        if not texts:
            return []
        encoded = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        everything = self._target is TrainTarget.ALL_TOKENS
        return [
            (ids, [True] * len(ids) if everything else mask(text, offsets, chosen))
            for text, ids, offsets, chosen in zip(
                texts, encoded["input_ids"], encoded["offset_mapping"], spans, strict=True
            )
        ]

    def take_remarks(self) -> dict[str, tuple[int, str]]:
        """Return what users should know about the rows since the last call: what, how often, and where first."""
        remarks, self._remarks = self._remarks, {}
        return remarks

    def _remark(self, what: str, place: str) -> None:
        count, first = self._remarks.get(what, (0, place))
        self._remarks[what] = count + 1, first

    def _render(self, messages: Sequence[Any], tools: Any, place: str) -> str:
        try:
            return self._template.render(messages, tools)
        except REFUSALS as error:
            raise DataError(f"{place}: the chat template refuses this conversation: {error}") from error

    def _spans(self, messages: Sequence[Mapping[str, Any]], tools: Any, text: str, place: str) -> list[Span]:
        """Return where the supervised text stands; and remark what the template made of the other turns."""
        turns = Turns(self._template, text, messages, tools)
        for turn, what in turns.altered():
            self._remark(f"{what} of {messages[turn]['role']} turns", f"{place}: turn {turn}")
        if tools and "tools" not in self._template.source(tools):
            self._remark("never reads the tools of a row", place)
        if self._target is TrainTarget.ALL_TOKENS:
            return []
        spoken = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        wanted = spoken[-1:] if self._target is TrainTarget.FINAL_ASSISTANT_TURN else spoken
        if spoken and has_blocks(self._template.source(tools)):
            blocks = self._blocks(messages, tools, text, place)
            return self._chosen([self._found(turns, turn, place) for turn in spoken], blocks, text, place)
        return [self._closed(self._found(turns, turn, place), place) for turn in wanted]

    def _blocks(self, messages: Sequence[Any], tools: Any, text: str, place: str) -> list[tuple[int, int]]:
        again, blocks = self._template.marked(messages, tools)
        if again != text:
            raise DataError(f"{place}: the chat template renders another text with its generation marks than without.")
        return blocks

    def _chosen(self, found: Sequence[Turn], blocks: Sequence[tuple[int, int]], text: str, place: str) -> list[Span]:
        """Return what the template's generation blocks choose of the wanted turns."""
        if stray(blocks, found, text):
            self._remark("marks text outside of the assistant's turns, which is not supervised", place)
        spans: list[Span] = []
        for turn in found[-1:] if self._target is TrainTarget.FINAL_ASSISTANT_TURN else found:
            self._closed(turn, place)
            stretches, completed = choose(blocks, turn, text)
            if completed:
                what = "leaves the end of assistant turns out of its generation marks; it is supervised all the same"
                self._remark(what, f"{place}: turn {turn.turn}")
            spans += [Span(turn.floor, start, stop, turn.ceiling) for start, stop in stretches]
        if not spans:
            raise DataError(f"{place}: the generation marks of the chat template choose nothing here. {_WAY_OUT}")
        return spans

    def _found(self, turns: Turns, turn: int, place: str) -> Turn:
        try:
            return turns.find(turn)
        except Lost as lost:
            message = f"{place}: turn {turn}: {lost}, so which tokens are the assistant's cannot be told. {_WAY_OUT}"
            raise DataError(message) from lost

    def _closed(self, turn: Turn, place: str) -> Span:
        if turn.stop == turn.end:
            if turn.final:
                raise DataError(
                    f"{place}: turn {turn.turn}: the chat template writes nothing that ends the assistant's turn, so "
                    f"the model would never learn to stop. {_WAY_OUT}"
                )
            self._remark("does not end assistant turns that others follow", f"{place}: turn {turn.turn}")
        return Span(turn.floor, turn.start, turn.stop, turn.ceiling)
