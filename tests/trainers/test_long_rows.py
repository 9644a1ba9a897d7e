"""Rows with many tool calls: the same masks, at a cost that grows with their length and not with its square."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import pytest

from oumi_plugins.trainers._conversations import Renderer
from oumi_plugins.trainers._template import Template
from tests.trainers.marking import ALL, supervised, tokenizer_of

SPOKEN = {
    "qwen2_5": r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)",
    "qwen3": r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)",
    "llama3_1": r"assistant<\|end_header_id\|>\n\n(.*?<\|eo[tm]_id\|>)",
    "gptoss": r"<\|start\|>assistant(.*?<\|(?:call|return|end)\|>)",
    "mistral_nemo": r"(?:\[/INST\]|\[/TOOL_RESULTS\])(.*?</s>)",
}
"""Template -> what an assistant says in its text, read off the markers around it."""


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


TOOLS = [tool("find"), tool("read")]


def row(calls: int, seed: int = 0) -> dict[str, Any]:
    """Return a row with calls one after another, each with an id of its own, as agents leave them."""
    chance = random.Random(seed)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Look it up."}]
    for number in range(calls):
        arguments = {
            "x": chance.choice(["a", 'say "no"', "", "find"]),
            "y": chance.choice([1, 2.5, [True], {"z": "q"}]),
        }
        function = {"name": ("find", "read")[number % 2], "arguments": arguments}
        name = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=9))
        messages += [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": name, "type": "function", "function": function}],
            },
            {"role": "tool", "name": function["name"], "content": f"Result {number}.", "tool_call_id": name},
        ]
    return {"messages": [*messages, {"role": "assistant", "content": "Yes."}], "tools": TOOLS}


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("calls", [1, 2, 3, 7])
def test_every_turn_is_found_however_many_there_are(name: str, calls: int) -> None:
    tokenizer, long = tokenizer_of(name), row(calls)
    text = tokenizer.apply_chat_template(long["messages"], tools=TOOLS, tokenize=False)
    expected = re.findall(SPOKEN[name], text, re.DOTALL)
    assert len(expected) == calls + 1
    assert supervised(tokenizer, long["messages"], tools=TOOLS) == expected


class Counted:
    """How many conversations were rendered, and how many messages they had together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts = self.messages = 0
        render = Template.render

        def counting(template: Template, messages: Sequence[Any], tools: Any, *, prompt: bool = False) -> str:
            self.texts += 1
            self.messages += len(messages)
            return render(template, messages, tools, prompt=prompt)

        monkeypatch.setattr(Template, "render", counting)


def rendered(name: str, calls: int) -> tuple[int, int]:
    """Return (texts, messages) that are rendered for a row, after one of four calls."""
    renderer = Renderer(tokenizer_of(name), ALL)
    renderer(row(4), "row")
    with pytest.MonkeyPatch.context() as patch:
        counted = Counted(patch)
        renderer(row(calls, seed=1), "row")
        return counted.texts, counted.messages


@pytest.mark.parametrize("name", sorted(set(SPOKEN) - {"mistral_nemo"}))
def test_forty_calls_take_no_more_renderings_than_four(name: str) -> None:
    assert rendered(name, 4)[0] == rendered(name, 40)[0] == 5


def test_where_the_template_writes_the_ids_of_calls_the_messages_rendered_grow_with_the_calls() -> None:
    few, many = rendered("mistral_nemo", 4), rendered("mistral_nemo", 40)
    assert many[1] <= 10 * few[1]
