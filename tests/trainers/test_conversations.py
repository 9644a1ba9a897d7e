"""Ids are those of the full rendering; the supervised text is the assistant's words and what ends its turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from oumi_kernel import ConfigError, DataError
from oumi_kernel.config import TrainTarget
from oumi_plugins.trainers._conversations import Renderer
from tests.conftest import QUICKSTART, ROOT

TEMPLATES = ROOT / "plugins/oumi_plugins/models/chat_templates"
CHATML = (QUICKSTART / "model/chat_template.jinja").read_text()
ALL = TrainTarget.ALL_ASSISTANT_TURNS
FINAL = TrainTarget.FINAL_ASSISTANT_TURN

CHAT = [
    {"role": "user", "content": "Do I need a permit?"},
    {"role": "assistant", "content": "Yes, you do."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "It is the law."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *CHAT]


def tokenizer_with(template: str, *markers: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "model")
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"extra_special_tokens": list(markers)})
    return tokenizer


def supervised(tokenizer: Any, messages: list[dict[str, Any]], target: TrainTarget = ALL, **row: Any) -> list[str]:
    """Return the decoded runs of supervised tokens, after checking that ids equal the full rendering's."""
    ids, mask = Renderer(tokenizer, target)({"messages": messages, **row}, "data.train, row 7")
    assert len(ids) == len(mask)
    assert ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **row)
    runs: list[list[int]] = [[]]
    for token, kept in zip(ids, mask, strict=True):
        if kept:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


# What ends an assistant's turn in each template that is shipped, with the markers that its models' tokenizers have.
ENDS = {
    "chat_ml": ("<|im_end|>",),
    "default": ("<|im_end|>",),
    "default_gen": ("<|im_end|>",),
    "gpt2": ("<|im_end|>",),
    "qwen2-instruct": ("<|im_end|>",),
    "zephyr": ("<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>"),
    "gemma2-it": ("<end_of_turn>", "<start_of_turn>"),
    "llama3-instruct": ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    "phi3-instruct": ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
}


def test_every_template_that_is_shipped_is_tried_here() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == set(ENDS)


@pytest.mark.parametrize("are_tokens", [True, False])
@pytest.mark.parametrize("name", ENDS)
def test_the_assistants_words_and_end_of_turn_are_supervised_and_nothing_else(name: str, are_tokens: bool) -> None:
    end, *others = ENDS[name]
    template = (TEMPLATES / f"{name}.jinja").read_text()
    tokenizer = tokenizer_with(template, *((end, *others) if are_tokens else ()))
    expected = [f"Yes, you do.{end}", f"It is the law.{end}"]
    assert supervised(tokenizer, CHAT) == expected
    assert supervised(tokenizer, CHAT, FINAL) == expected[1:]
    assert supervised(tokenizer, CHAT[:2]) == expected[:1]
    if name != "gemma2-it":  # Gemma has no system turn
        assert supervised(tokenizer, SYSTEM) == expected


def test_what_begins_the_next_turn_is_not_taken_for_the_end_of_this_one() -> None:
    """Only the last turn is ended; the next header begins with the same letters as the end."""
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% else %}<|im_end|>{% endif %}"
    assert supervised(tokenizer_with(template), CHAT) == ["Yes, you do.", "It is the law.<|im_end|>"]


def test_all_tokens_means_all_tokens() -> None:
    ids, mask = Renderer(tokenizer_with(CHATML), TrainTarget.ALL_TOKENS)({"messages": CHAT}, "row 0")
    assert mask == [True] * len(ids)


def test_a_conversation_without_an_assistant_has_nothing_supervised() -> None:
    assert supervised(tokenizer_with(CHATML), CHAT[:1]) == []


@pytest.mark.parametrize("content", ["", None])
def test_an_empty_turn_still_learns_to_end(content: str | None) -> None:
    template = CHATML.replace("m['content']", "(m['content'] or '')")
    messages = [CHAT[0], {"role": "assistant", "content": content}, *CHAT[2:]]
    assert supervised(tokenizer_with(template), messages) == ["<|im_end|>", "It is the law.<|im_end|>"]


def test_an_assistant_may_speak_first() -> None:
    assert supervised(tokenizer_with(CHATML), CHAT[1:]) == ["Yes, you do.<|im_end|>", "It is the law.<|im_end|>"]


def test_two_turns_of_the_assistant_in_a_row_are_two_turns() -> None:
    messages = [CHAT[0], CHAT[1], CHAT[3]]
    assert supervised(tokenizer_with(CHATML), messages) == ["Yes, you do.<|im_end|>", "It is the law.<|im_end|>"]
    assert supervised(tokenizer_with(CHATML), messages, FINAL) == ["It is the law.<|im_end|>"]


def test_words_that_look_like_the_end_of_the_users_turn_stay_the_assistants() -> None:
    messages = [CHAT[0], {"role": "assistant", "content": "user\n assistant  "}, *CHAT[2:]]
    assert supervised(tokenizer_with(CHATML), messages)[0].startswith("user\n assistant")


TOOLS = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] or '' }}{% for call in m['tool_calls'] or [] %}
<tool_call>{{ call['function']['name'] }} {{ call['function']['arguments'] | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_calls_of_tools_are_supervised_and_their_results_are_not() -> None:
    call = {"type": "function", "function": {"name": "permit", "arguments": {"for": "a deck"}}}
    messages = [
        {"role": "user", "content": "Look it up."},
        {"role": "assistant", "content": "One moment.", "tool_calls": [call, call]},
        {"role": "tool", "content": "needed"},
        {"role": "tool", "content": "not needed"},
        {"role": "assistant", "content": "You need one."},
    ]
    tool = {"type": "function", "function": {"name": "permit", "description": "", "parameters": {}}}
    one = '<tool_call>permit {"for": "a deck"}</tool_call>'
    found = supervised(tokenizer_with(TOOLS), messages, tools=[tool])
    assert found == [f"One moment.{one}{one}<|im_end|>", "You need one.<|im_end|>"]


def test_generation_marks_of_the_template_are_followed() -> None:
    marked = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>
{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>
{% endif %}{% endfor %}"""
    found = supervised(tokenizer_with(marked), SYSTEM)
    assert found == ["Yes, you do.<|im_end|>\n", "It is the law.<|im_end|>\n"]  # the newline stands within the marks
    assert supervised(tokenizer_with(marked), SYSTEM, FINAL) == found[1:]


def test_a_template_that_rewrites_what_came_before_is_an_error_with_row_and_turn() -> None:
    """Counts the turns of the whole conversation, as templates do that treat the last turn in another way."""
    template = CHATML.replace("{% for m in", "{{ messages | length }}{% for m in")
    with pytest.raises(DataError, match=r"data\.train, row 7: turn 1: .*generation prompt is not how"):
        supervised(tokenizer_with(template), CHAT)


def test_a_turn_that_changes_when_later_turns_follow_is_an_error_with_row_and_turn() -> None:
    """Drops the thoughts of all turns but the last, as Qwen3 does."""
    template = CHATML.replace("m['content']", "m['content'] if loop.last else m['content'].split('</think>')[-1]")
    thinking = [CHAT[0], {"role": "assistant", "content": "<think>hm</think>Yes."}, *CHAT[2:]]
    assert supervised(tokenizer_with(template), thinking[:2]) == ["<think>hm</think>Yes.<|im_end|>"]
    with pytest.raises(DataError, match=r"row 7: turn 1: .*differently when later turns follow"):
        supervised(tokenizer_with(template), thinking)
    assert supervised(tokenizer_with(template), thinking, FINAL) == ["It is the law.<|im_end|>"]


def test_what_the_template_refuses_is_an_error_with_the_row() -> None:
    template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(DataError, match=r"row 7: the chat template refuses this conversation: no system turns"):
        supervised(tokenizer_with(template), CHAT)


def test_a_tokenizer_without_a_template_or_offsets_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(CHATML)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"model\.chat_template: the tokenizer has no chat template"):
        Renderer(tokenizer, ALL)

    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    slow = Slow.from_pretrained(QUICKSTART / "model")
    with pytest.raises(ConfigError, match="a fast tokenizer is needed"):
        Renderer(slow, ALL)
