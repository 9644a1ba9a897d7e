"""What a chat template writes around turns: the header of an assistant's turn and what ends it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from oumi_plugins.trainers._layout import Layout, Part, parts_of
from oumi_plugins.trainers._stand_ins import CALLS, fields, stand_in
from oumi_plugins.trainers._talk import Talk, kind

REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What a template raises for a conversation that it cannot render."""
USER, ASSISTANT = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
_KEPT = 4096  # kinds of conversation


@dataclass(frozen=True)
class Ends:
    """What ends an assistant's turn."""

    between: str
    """When another turn follows."""
    final: str
    """When none does."""


@dataclass(frozen=True)
class Prompt:
    """A generation prompt."""

    turn: int
    """The turn that it stands behind."""
    text: str
    """All that is written behind that turn."""
    without: str
    """How much of it is written without a prompt as well; all of it where the template has no prompts."""

    def fits(self, before: str) -> bool:
        """Say whether a model may go on behind it with what stands before an assistant's turn.

        Where the template has no prompts of its own, that is blanks alone: more would be a header.
        """
        return self.text != self.without or not before.removeprefix(self.text).strip()


_Behind = tuple[Prompt | None, str | None, str | None]


class Template:
    """The chat template of a tokenizer, with the variables that it is given."""

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any]) -> None:
        self._tokenizer, self._variables = tokenizer, dict(variables)
        names = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        named = sorted((name for name in names if name.strip(" \t\r\n▁")), key=len, reverse=True)
        self._marker = re.compile("|".join(map(re.escape, named)) or "(?!)")
        added = tokenizer.added_tokens_decoder.values()
        special = sorted({token.content for token in added if token.special}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._layouts: dict[Any, Layout | None] = {}
        self._prompts: dict[Any, _Behind] = {}
        self._probes: dict[Any, tuple[Ends, str]] = {}

    def source(self, tools: Any) -> str:
        """Return the text of the template."""
        return self._tokenizer.get_chat_template(tools=tools)

    def render(self, messages: Sequence[Any], tools: Any, *, prompt: bool = False) -> str:
        """Return the text of a conversation, exactly what `apply_chat_template` tokenises.

        Raises:
            Exception: One of `REFUSALS`.
        """
        return self._tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=False, add_generation_prompt=prompt, **self._variables
        )

    def marked(self, messages: Sequence[Any], tools: Any) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and where in it the template's `{% generation %}` blocks stand."""
        variables = {**self._tokenizer.special_tokens_map, **self._variables}
        rendered: Any = render_jinja_template(
            conversations=[[{k: v for k, v in each.items() if v is not None} for each in messages]],
            tools=tools,
            chat_template=self.source(tools),
            return_assistant_tokens_mask=True,
            **variables,
        )
        texts, blocks = rendered
        return texts[0], blocks[0]

    def layout(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> Layout | None:
        """Return the layout of this kind of conversation; None where the template refuses to write marks."""
        key = (repr(tools) if tools else None, *(kind(message, turn) for turn, message in enumerate(messages)))
        if key not in self._layouts:
            if len(self._layouts) >= _KEPT:
                self._layouts.clear()
            self._layouts[key] = self._made(messages, tools)
        return self._layouts[key]

    def _made(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> Layout | None:
        marked = [stand_in(message, turn) for turn, message in enumerate(messages)]
        try:
            parts, tail = parts_of(self.render(marked, tools))
        except REFUSALS:
            return None
        layout = Layout(parts, tail, _missing(parts, messages))
        talk = Talk(messages, tools, "".join((*(part.before for part in parts), tail)))
        ends, opening = self._probed(tools)
        if not ends.between and not ends.final:  # the template refuses short conversations
            ends = self._ends_in(layout, messages)
        for index, part in enumerate(parts):
            if messages[part.turn]["role"] == "assistant":
                previous = parts[index - 1].turn if index else None
                part.header = self._header(talk, part, previous, opening)
                part.closing = self._closing(ends, part, layout.after(index), final=index + 1 == len(parts))
        return layout

    def _header(self, talk: Talk, part: Part, previous: int | None, opening: str) -> int:
        """Return how much of the template's text before an assistant's turn is there when it begins to write.

        That is what a generation prompt has in common with it. Where the template has no such prompt, it is what the
        template writes before a turn of words alone, but for what stands between prompt and words elsewhere.
        """
        prompt, plain = self._asked_for(talk, part)
        if prompt is not None and prompt.turn == previous and prompt.fits(part.before):
            if prompt.text.startswith(part.before) or part.before.startswith(prompt.text):
                return min(len(prompt.text), len(part.before))
            common = _common(self._pieces(prompt.text), self._pieces(part.before))
            if common[len(prompt.without) :].strip():
                return len(common)
        header = plain if plain is not None and part.before.startswith(plain) else part.before
        return len(header) - len(opening if header.endswith(opening) else "")

    def _asked_for(self, talk: Talk, part: Part) -> tuple[Prompt | None, str | None]:
        """Return the generation prompt in the place of an assistant's turn, and the text before plain words there.

        The conversation's opening and what was said last are enough, if the template writes the same before the turn
        when that is all: so a long conversation costs what its length does. Else it is asked of all that was said.
        """
        near = talk.near(part.turn)
        if near:
            prompt, plain, before = self._behind(talk, near, talk.answered(part.turn))
            if before == part.before:
                return prompt and replace(prompt, turn=near[prompt.turn]), plain
        return self._behind(talk, range(part.turn), ())[:2]

    def _behind(self, talk: Talk, turns: Sequence[int], further: Sequence[int]) -> _Behind:
        """Return the prompt behind some turns, and what stands there before plain words, and before further turns."""
        told = [*turns, *further]
        key = (bool(talk.tools), bool(further), *talk.kinds(told))
        if key not in self._prompts:
            if len(self._prompts) >= _KEPT:
                self._prompts.clear()
            before, tools = talk.stand_ins(turns), talk.tools
            seen = self._around(talk.stand_ins(told), len(turns), tools)[0] if further else None
            self._prompts[key] = self._prompt(before, tools), self._plain(before, tools), seen
        return self._prompts[key]

    def _prompt(self, before: Sequence[Mapping[str, Any]], tools: Any) -> Prompt | None:
        """Return what is written to have an assistant's turn written; None if the template refuses that."""
        try:
            with_prompt, without = self.render(before, tools, prompt=True), self.render(before, tools)
        except REFUSALS:
            return None
        parts, tail = parts_of(with_prompt)
        if not parts:
            return None
        return Prompt(parts[-1].turn, tail, _common(self._pieces(tail), self._pieces(parts_of(without)[1])))

    def _plain(self, before: Sequence[Mapping[str, Any]], tools: Any) -> str | None:
        """Return what the template writes before an assistant's turn of words alone."""
        return self._around([*before, ASSISTANT], len(before), tools)[0]

    def _probed(self, tools: Any) -> tuple[Ends, str]:
        """Return what ends a turn, and what stands between header and text, in the shortest conversations."""
        if bool(tools) not in self._probes:
            _, last = self._around([USER, ASSISTANT], 1, tools)
            header, user = self._around([USER, ASSISTANT, USER], 1, tools)
            _, assistant = self._around([USER, ASSISTANT, ASSISTANT], 1, tools)
            between = self._end(user, last)
            if not between and user and not self._is_header(user, tools):
                between = self._end(user, assistant)
            final = between if between and last and last.startswith(between) else self._end(last, last)
            self._probes[bool(tools)] = Ends(between, final), self._opening(header, tools)
        return self._probes[bool(tools)]

    def _ends_in(self, layout: Layout, messages: Sequence[Mapping[str, Any]]) -> Ends:
        """Return what ends a turn, read off one conversation."""
        spoken = [index for index, part in enumerate(layout.parts) if messages[part.turn]["role"] == "assistant"]
        behind = [layout.after(index) for index in spoken]
        between = self._end(behind[0], behind[-1]) if len(behind) > 1 else ""
        last = behind[-1] if spoken and spoken[-1] + 1 == len(layout.parts) else ""
        return Ends(between, between if between and last.startswith(between) else self._end(last, last))

    def _is_header(self, behind: str, tools: Any) -> bool:
        """Say whether what is written behind a turn begins as conversations begin, so that it ends nothing."""
        first, _ = self._around([USER], 0, tools)
        bos = self._tokenizer.bos_token
        pieces = self._pieces(first.removeprefix(bos) if first and bos else first or "")
        return pieces[:1] == self._pieces(behind)[:1]

    def _opening(self, before: str | None, tools: Any) -> str:
        prompt = self._prompt([stand_in(USER, 0)], tools)
        there = before and prompt and prompt.fits(before) and before.startswith(prompt.text)
        return before[len(prompt.text) :] if before and prompt and there else ""

    def _around(self, messages: Sequence[Mapping[str, Any]], turn: int, tools: Any) -> tuple[str | None, str | None]:
        """Return what the template writes before and behind a turn; None where it refuses the conversation."""
        try:
            parts, tail = parts_of(self.render([stand_in(each, index) for index, each in enumerate(messages)], tools))
        except REFUSALS:
            return None, None
        for index, part in enumerate(parts):
            if part.turn == turn:
                return part.before, Layout(parts, tail).after(index)
        return None, None

    def _end(self, behind: str | None, other: str | None) -> str:
        """Return what ends a turn, given what is written behind it in two conversations that go on in other ways."""
        if not behind or not other:
            return ""
        if behind != other and other.strip() and behind.startswith(other.rstrip()):
            return other.rstrip()
        common = _common(self._pieces(behind), self._pieces(other))
        marker = self._marker.search(common)
        return common[: marker.end()] if marker else common.rstrip() or common

    def _pieces(self, text: str) -> list[str]:
        """Return a text cut at the tokenizer's own markers and around blanks."""
        words = rf"{self._marker.pattern}|\s+|(?:(?!{self._marker.pattern})\S)+"
        return [found[0] for found in re.finditer(words, text)]

    def _closing(self, ends: Ends, part: Part, after: str, *, final: bool) -> int:
        """Return how much of `after` ends the turn."""
        choices = [end for end in (ends.between, ends.final if final else "") if end]
        for end in choices:
            if after.startswith(end):
                return len(end)
        if part.texts[-1] < CALLS:
            return 0
        found = [after.index(end) + len(end) for end in choices if end.strip() and end in after]
        if found:
            return min(found)
        special = self._special.search(after)
        return special.end() if special else 0


def _missing(parts: Sequence[Part], messages: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return (turn, which) of the texts that the template leaves out."""
    written = {(part.turn, which) for part in parts for which in part.texts}
    there = ((turn, which) for turn, message in enumerate(messages) for which in sorted(fields(message)))
    return [text for text in there if text not in written]


def _common(left: Sequence[str], right: Sequence[str]) -> str:
    """Return the common beginning of two texts in pieces."""
    same: list[str] = []
    for one, other in zip(left, right, strict=False):
        if one != other:
            if one.isspace() and other.isspace():
                same.append(min(one, other, key=len) if one.startswith(other) or other.startswith(one) else "")
            break
        same.append(one)
    return "".join(same)
