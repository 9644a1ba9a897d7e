"""Templates of published models: what is supervised, written down by hand for each."""

from __future__ import annotations

import re
from typing import Any

import pytest

from oumi_kernel import DataError
from oumi_plugins.trainers._conversations import Renderer
from tests.trainers.marking import ALL, FINAL, TEMPLATES, marked, marked_with_remarks, tokenizer_of

CHAT = [
    {"role": "user", "content": "Permit?"},
    {"role": "assistant", "content": "Yes, you do."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "It is law."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *CHAT]
THINK = [
    CHAT[0],
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
    CHAT[2],
    {"role": "assistant", "content": "<think>\nlaw\n</think>\n\nLaw."},
]
REASONING = [
    CHAT[0],
    {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"},
    CHAT[2],
    {"role": "assistant", "content": "Law.", "reasoning_content": "law"},
]


def call(value: str, name: str) -> dict[str, Any]:
    return {"type": "function", "id": name, "function": {"name": "permit", "arguments": {"for": value}}}


TOOL = {
    "type": "function",
    "function": {
        "name": "permit",
        "description": "d",
        "parameters": {"type": "object", "properties": {"for": {"type": "string", "description": "x"}}},
    },
}
ONE_CALL = [
    {"role": "user", "content": "Look."},
    {"role": "assistant", "content": "", "tool_calls": [call("a", "abcdefghi")]},
    {"role": "tool", "content": "needed", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "Yes."},
]
TWO_CALLS = [
    {"role": "user", "content": "Look."},
    {"role": "assistant", "content": "Moment.", "tool_calls": [call("a", "abcdefghi"), call("b", "abcdefghj")]},
    {"role": "tool", "content": "needed", "tool_call_id": "abcdefghi"},
    {"role": "tool", "content": "not", "tool_call_id": "abcdefghj"},
    {"role": "assistant", "content": "Yes."},
]

CHAT_IN_CHATML = (
    "<|im_start|>user\nPermit?<|im_end|>\n<|im_start|>assistant\n«Yes, you do.<|im_end|>»\n"
    "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n«It is law.<|im_end|>»\n"
)
LLAMA = (
    "<|start_header_id|>user<|end_header_id|>\n\nPermit?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n«Yes, you do.<|eot_id|>»"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n«It is law.<|eot_id|>»"
)
LLAMA_31_SYSTEM = (
    "<s><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
LLAMA_CALL = (
    "Look.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    '«{"name": "permit", "parameters": {"for": "a"}}<|eot_id|>»'
    '<|start_header_id|>ipython<|end_header_id|>\n\n"needed"<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n«Yes.<|eot_id|>»"
)
QWEN_CALLS = (
    "<|im_start|>user\nLook.<|im_end|>\n<|im_start|>assistant\n«Moment.\n"
    '<tool_call>\n{"name": "permit", "arguments": {"for": "a"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "permit", "arguments": {"for": "b"}}\n</tool_call><|im_end|>»\n'
    "<|im_start|>user\n<tool_response>\nneeded\n</tool_response>\n<tool_response>\nnot\n</tool_response><|im_end|>\n"
)
GEMMA = (
    "Permit?<end_of_turn>\n<start_of_turn>model\n«Yes, you do.<end_of_turn>»\n"
    "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n«It is law.<end_of_turn>»\n"
)
PHI = (
    "<|user|>\nPermit?<|end|>\n<|assistant|>\n«Yes, you do.<|end|>»\n"
    "<|user|>\nWhy?<|end|>\n<|assistant|>\n«It is law.<|end|>»\n</s>"
)
DEEPSEEK = (
    "<｜User｜>Permit?<｜Assistant｜>«Yes, you do.<｜end▁of▁sentence｜>»"  # noqa: RUF001 - the model's own markers
    "<｜User｜>Why?<｜Assistant｜>«It is law.<｜end▁of▁sentence｜>»"  # noqa: RUF001
)
GPT_OSS = (
    "<|start|>user<|message|>Permit?<|end|><|start|>assistant«<|channel|>final<|message|>Yes, you do.<|end|>»"
    "<|start|>user<|message|>Why?<|end|><|start|>assistant«<|channel|>final<|message|>It is law.<|return|>»"
)

EXPECTED: dict[tuple[str, str], tuple[list[dict[str, Any]], str]] = {
    ("qwen2_5", "system"): (SYSTEM, "<|im_start|>system\nBe brief.<|im_end|>\n" + CHAT_IN_CHATML),
    ("qwen2_5", "two calls"): (TWO_CALLS, QWEN_CALLS + "<|im_start|>assistant\n«Yes.<|im_end|>»\n"),
    ("qwen3", "chat"): (
        CHAT,
        CHAT_IN_CHATML.replace("«It is", "«<think>\n\n</think>\n\nIt is"),  # a generation prompt does not write it
    ),
    ("qwen3", "thoughts in the text"): (
        THINK,
        "<|im_start|>user\nPermit?<|im_end|>\n<|im_start|>assistant\n«Yes.<|im_end|>»\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n«<think>\nlaw\n</think>\n\nLaw.<|im_end|>»\n",
    ),
    ("qwen3", "thoughts apart"): (
        REASONING,
        "<|im_start|>user\nPermit?<|im_end|>\n<|im_start|>assistant\n«Yes.<|im_end|>»\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n«<think>\nlaw\n</think>\n\nLaw.<|im_end|>»\n",
    ),
    ("qwen3", "two calls"): (
        TWO_CALLS,
        QWEN_CALLS + "<|im_start|>assistant\n«<think>\n\n</think>\n\nYes.<|im_end|>»\n",
    ),
    ("llama3_1", "chat"): (CHAT, LLAMA_31_SYSTEM + "<|eot_id|>" + LLAMA),
    ("llama3_1", "system"): (SYSTEM, LLAMA_31_SYSTEM + "Be brief.<|eot_id|>" + LLAMA),
    ("llama3_1", "one call"): (ONE_CALL, LLAMA_CALL),
    ("llama3_2", "system"): (SYSTEM, "\n\nBe brief.<|eot_id|>" + LLAMA),
    ("llama3_2", "one call"): (ONE_CALL, LLAMA_CALL),
    ("gemma3", "chat"): (CHAT, "<s><start_of_turn>user\n" + GEMMA),
    ("gemma3", "system"): (SYSTEM, "<s><start_of_turn>user\nBe brief.\n\n" + GEMMA),  # merged into the user's turn
    ("mistral_nemo", "chat"): (CHAT, "<s>[INST]Permit?[/INST]«Yes, you do.</s>»[INST]Why?[/INST]«It is law.</s>»"),
    ("mistral_nemo", "one call"): (
        ONE_CALL,
        "[INST]Look.[/INST]"
        '«[TOOL_CALLS][{"name": "permit", "arguments": {"for": "a"}, "id": "abcdefghi"}]</s>»'
        '[TOOL_RESULTS]{"content": needed, "call_id": "abcdefghi"}[/TOOL_RESULTS]«Yes.</s>»',
    ),
    ("phi3", "chat"): (CHAT, PHI),  # the last </s> is written behind any conversation, and not what ends a turn
    ("phi3", "system"): (SYSTEM, "<|system|>\nBe brief.<|end|>\n" + PHI),
    ("phi3_5", "system"): (SYSTEM, "<|system|>\nBe brief.<|end|>\n" + PHI),
    ("deepseek_r1_distill", "chat"): (CHAT, "<s>" + DEEPSEEK),
    ("deepseek_r1_distill", "system"): (SYSTEM, "<s>Be brief." + DEEPSEEK),
    ("deepseek_r1_distill_training", "chat"): (CHAT, "<s>" + DEEPSEEK),
    ("gptoss", "chat"): (CHAT, GPT_OSS),
    ("gptoss", "thoughts apart"): (
        REASONING,
        "<|start|>user<|message|>Permit?<|end|><|start|>assistant«<|channel|>final<|message|>Yes.<|end|>»"
        "<|start|>user<|message|>Why?<|end|><|start|>assistant«<|channel|>analysis<|message|>law<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Law.<|return|>»",
    ),
    ("gptoss", "one call"): (
        ONE_CALL,
        "<|start|>user<|message|>Look.<|end|><|start|>assistant« to=functions.permit<|channel|>commentary json"
        '<|message|>{"for": "a"}<|call|>»<|start|>functions.permit to=assistant<|channel|>commentary<|message|>'
        '"needed"<|end|><|start|>assistant«<|channel|>final<|message|>Yes.<|return|>»',
    ),
}


def extras(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {"tools": [TOOL]} if any(message["role"] == "tool" for message in messages) else {}


@pytest.mark.parametrize(("name", "kind"), EXPECTED)
def test_the_supervised_text_is_what_a_person_would_mark(name: str, kind: str) -> None:
    """What stands before the part that is written down here, such as descriptions of tools, is not supervised."""
    messages, expected = EXPECTED[name, kind]
    text = marked(tokenizer_of(name), messages, **extras(messages))
    assert text.endswith(expected)
    assert "«" not in text[: -len(expected)]
    last = expected.rindex("«")
    only_last = expected[:last].replace("«", "").replace("»", "") + expected[last:]
    assert marked(tokenizer_of(name), messages, FINAL, **extras(messages)).endswith(only_last)


def test_every_published_template_here_is_tried() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == {name for name, _ in EXPECTED} | {"glm4moe"}


def test_thinking_switched_off_is_in_the_prompt_and_not_for_the_model_to_write() -> None:
    text = marked(tokenizer_of("qwen3"), CHAT[:2], variables={"enable_thinking": False})
    assert text.endswith("assistant\n<think>\n\n</think>\n\n«Yes, you do.<|im_end|>»\n")


def test_thoughts_where_thinking_is_switched_off_are_an_error_since_the_prompt_would_be_another() -> None:
    with pytest.raises(DataError, match="row 7: turn 3: what the chat template writes around the assistant's turn"):
        marked(tokenizer_of("qwen3"), THINK, variables={"enable_thinking": False})


def test_a_result_that_the_template_writes_as_json_is_not_said_to_be_changed() -> None:
    messages = [*ONE_CALL[:2], ONE_CALL[2] | {"content": 'say "no"\n\tand go'}, ONE_CALL[3]]
    text, remarks = marked_with_remarks(tokenizer_of("llama3_1"), messages, tools=[TOOL])
    assert '"say \\"no\\"\\n\\tand go"' in text
    assert remarks == []


def test_a_row_of_each_kind_is_found_in_a_long_conversation() -> None:
    """Turns that the template writes in its own way stand between others, and each has to be looked for."""
    messages = [*TWO_CALLS[:4], THINK[1], *TWO_CALLS[:4], THINK[3]]
    text = marked(tokenizer_of("qwen3"), messages, tools=[TOOL])
    calls = "«Moment.\n" + QWEN_CALLS.split("«Moment.\n")[1].split("»")[0] + "»"
    assert text.count("«") == 4
    assert text.count(calls) == 2
    assert "<|im_start|>assistant\n«Yes.<|im_end|>»" in text
    assert text.endswith("«<think>\nlaw\n</think>\n\nLaw.<|im_end|>»\n")


LEFT_OUT = {
    "qwen3": (THINK, "leaves out or changes part of the text of assistant turns: 1 times, first in .*row 7: turn 1"),
    "qwen2_5": (REASONING, "leaves out the reasoning of assistant turns: 2 times, first in .*row 7: turn 1"),
    "deepseek_r1_distill": (THINK, "changes part of the text of assistant turns: 2 times, first in .*row 7: turn 1"),
    "mistral_nemo": (SYSTEM, "leaves out the text of system turns: 1 times, first in .*row 7: turn 0"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_a_template_leaves_out_is_counted_and_said(name: str) -> None:
    messages, expected = LEFT_OUT[name]
    _, remarks = marked_with_remarks(tokenizer_of(name), messages)
    assert len(remarks) == 1
    assert re.search(expected, remarks[0])


@pytest.mark.parametrize(
    ("name", "messages", "reason"),
    [
        ("glm4moe", CHAT, "turn 3: the chat template writes nothing that ends the assistant's turn"),
        ("phi3", TWO_CALLS, "turn 1: the chat template leaves out tool calls of the assistant's turn"),
        ("gptoss", TWO_CALLS, "turn 1: the chat template leaves out tool calls"),
        ("deepseek_r1_distill", ONE_CALL, "turn 1: the chat template leaves out tool calls"),
        (
            "llama3_1",
            TWO_CALLS,
            "the chat template refuses this conversation: This model only supports single tool-calls at once",
        ),
        ("gemma3", [*CHAT, CHAT[1]], "the chat template refuses this conversation: Conversation roles must alternate"),
    ],
)
def test_what_a_template_cannot_write_is_an_error_with_row_turn_and_way_out(
    name: str, messages: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(DataError, match=rf"^data\.train, row 7: {reason}") as caught:
        marked(tokenizer_of(name), messages, **extras(messages))
    assert "refuses" in reason or "Use another template (model.chat_template)" in str(caught.value)


BLANK = [{"role": "user", "content": " "}, {"role": "assistant", "content": "Hi."}]
PLAIN = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "llama3_1"])
def test_a_mask_does_not_depend_on_the_rows_before_it(name: str) -> None:
    tokenizer = tokenizer_of(name)
    fresh = [Renderer(tokenizer, ALL)({"messages": talk}, "row") for talk in (BLANK, PLAIN)]
    for order in ((0, 1), (1, 0)):
        shared = Renderer(tokenizer, ALL)
        found = {index: shared({"messages": (BLANK, PLAIN)[index]}, "row") for index in order}
        assert [found[0], found[1]] == fresh


@pytest.mark.parametrize("arguments", [{}, {"x": 1}, {"x": [True, None]}, {"x": {"y": 2.5}}, {"x": "a", "y": 3}])
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "gptoss", "mistral_nemo"])
def test_arguments_of_a_call_may_be_of_any_kind(name: str, arguments: dict[str, Any]) -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "find", "arguments": arguments}}
    talk = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "find", "content": "Result.", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "Yes."},
    ]
    tokenizer = tokenizer_of(name)
    ids, mask = Renderer(tokenizer, ALL)({"messages": talk, "tools": TOOLS}, "row")
    learnt = tokenizer.decode([token for token, kept in zip(ids, mask, strict=True) if kept])
    assert "find" in learnt
    assert "Yes." in learnt
    assert "Result." not in learnt
    assert "Why?" not in learnt
    for value in arguments:
        assert f'"{value}"' in learnt


@pytest.mark.parametrize("name", ["gptoss", "qwen3", "llama3_1"])
def test_an_empty_result_of_a_tool_is_not_learnt(name: str) -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "find", "arguments": {"x": "a"}}}
    talk = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "find", "content": "", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "Yes."},
    ]
    tokenizer = tokenizer_of(name)
    ids, mask = Renderer(tokenizer, ALL)({"messages": talk, "tools": TOOLS}, "row")
    learnt = [tokenizer.decode([t]) for t, kept in zip(ids, mask, strict=True) if kept]
    assert "find" in "".join(learnt)
    assert "functions.find to=assistant" not in "".join(learnt)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "Finds.",
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]},
        },
    }
]
