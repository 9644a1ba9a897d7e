"""Ids are those of the full rendering; the supervised text is the assistant's words and what ends its turn."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from oumi_kernel import ConfigError, DataError
from oumi_kernel.config import TrainTarget
from oumi_plugins.trainers._conversations import Renderer, sentence
from tests.conftest import QUICKSTART, ROOT
from tests.trainers.marking import ALL, FINAL, marked, marked_with_remarks, supervised, tokenizer_with

TEMPLATES = ROOT / "plugins/oumi_plugins/models/chat_templates"
CHATML = (QUICKSTART / "model/chat_template.jinja").read_text()

CHAT = [
    {"role": "user", "content": "Do I need a permit?"},
    {"role": "assistant", "content": "Yes, you do."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "It is the law."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *CHAT]


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


def test_a_template_may_write_the_number_of_turns_or_other_things_in_front() -> None:
    template = CHATML.replace("{% for m in", "{{ messages | length }}{% for m in")
    assert supervised(tokenizer_with(template), CHAT) == ["Yes, you do.<|im_end|>", "It is the law.<|im_end|>"]


def test_a_template_may_write_earlier_turns_in_another_way_than_the_last() -> None:
    """Drops the thoughts of all turns but the last."""
    template = CHATML.replace("m['content']", "m['content'] if loop.last else m['content'].split('</think>')[-1]")
    first = {"role": "assistant", "content": "<think>hm</think>Yes."}
    last = {"role": "assistant", "content": "<think>ah</think>So."}
    assert supervised(tokenizer_with(template), [CHAT[0], first]) == ["<think>hm</think>Yes.<|im_end|>"]
    thinking = [CHAT[0], first, CHAT[2], first, CHAT[2], last]
    expected = ["Yes.<|im_end|>", "Yes.<|im_end|>", "<think>ah</think>So.<|im_end|>"]
    assert supervised(tokenizer_with(template), thinking) == expected
    assert supervised(tokenizer_with(template), thinking, FINAL) == expected[2:]


def test_a_template_may_refuse_short_conversations() -> None:
    """What ends a turn is then read off the conversation itself."""
    template = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}" + CHATML
    assert supervised(tokenizer_with(template), SYSTEM) == ["Yes, you do.<|im_end|>", "It is the law.<|im_end|>"]
    assert supervised(tokenizer_with(template), SYSTEM[:3]) == ["Yes, you do.<|im_end|>"]


LOST = {
    "leaves the assistant's turn out": "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
    "writes the assistant's turn in more than one place": CHATML + "{{ messages[1]['content'] }}",
    "refuses the conversation when other words stand in it": CHATML
    + "{% if 'permit' not in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}",
    "writes around the assistant's turn changes with the turn's words": CHATML.replace(
        "m['role'] }}", "m['role'] }} {{ m['content'] | length }}"
    ),
}


@pytest.mark.parametrize("reason", LOST)
def test_a_turn_that_cannot_be_found_is_an_error_with_row_turn_and_way_out(reason: str) -> None:
    with pytest.raises(DataError, match=rf"data\.train, row 7: turn 1: .*{reason}.*Use another template"):
        supervised(tokenizer_with(LOST[reason]), CHAT)


def test_a_template_that_ends_no_turn_is_an_error_since_the_model_would_never_stop() -> None:
    with pytest.raises(DataError, match=r"row 7: turn 3: .*writes nothing that ends the assistant's turn"):
        supervised(tokenizer_with(CHATML.replace("<|im_end|>\n", "")), CHAT)


@pytest.mark.parametrize("header", ["<|{{ m['role'] }}|>", "<|im_start|>{{ m['role'] + '\n' }}"])
def test_turns_in_between_that_nothing_ends_are_counted_and_headers_end_nothing(header: str) -> None:
    template = f"{{% for m in messages %}}{header}{{{{ m['content'] }}}}{{% endfor %}}<|im_end|>"
    text, remarks = marked_with_remarks(tokenizer_with(template, "<|user|>", "<|assistant|>"), CHAT)
    assert "«Yes, you do.»<|" in text
    assert text.endswith("«It is the law.<|im_end|>»")
    assert remarks == [
        "the chat template does not end assistant turns that others follow: 1 times, first in data.train, row 7: "
        "turn 1."
    ]


def test_a_system_turn_that_the_template_drops_is_counted_with_the_first_row() -> None:
    template = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    renderer = Renderer(tokenizer_with(template), ALL)
    for index in range(3):
        renderer({"messages": SYSTEM if index else CHAT}, f"data.train, row {index}")
    assert [sentence(what, *found) for what, found in renderer.take_remarks().items()] == [
        "the chat template leaves out the text of system turns: 2 times, first in data.train, row 1: turn 0."
    ]
    assert not marked_with_remarks(tokenizer_with(CHATML), SYSTEM)[1]


def test_texts_are_counted_even_where_a_template_takes_no_marks() -> None:
    template = LOST["refuses the conversation when other words stand in it"].replace(
        "m['content']", "m['content'] | replace('Why', 'How')"
    )
    renderer = Renderer(tokenizer_with(template), TrainTarget.ALL_TOKENS)
    renderer({"messages": CHAT}, "row 0")
    assert [sentence(what, *found) for what, found in renderer.take_remarks().items()] == [
        "the chat template leaves out or changes part of the text of user turns: 1 times, first in row 0: turn 2."
    ]


def test_tools_that_the_template_never_reads_are_counted() -> None:
    tool = {"type": "function", "function": {"name": "permit", "description": "", "parameters": {}}}
    _, remarks = marked_with_remarks(tokenizer_with(CHATML), CHAT, tools=[tool])
    assert remarks == ["the chat template never reads the tools of a row: 1 times, first in data.train, row 7."]
    assert not marked_with_remarks(tokenizer_with("{% set _ = tools %}" + CHATML), CHAT, tools=[tool])[1]


def test_a_users_text_that_the_template_changes_is_counted_and_blanks_are_not() -> None:
    template = CHATML.replace("m['content']", "m['content'] | replace('Why', 'How') | trim")
    messages = [{"role": "user", "content": " Do I? \n"}, *CHAT[1:]]
    text, remarks = marked_with_remarks(tokenizer_with(template), messages)
    assert text.count("«") == 2
    assert remarks == [
        "the chat template leaves out or changes part of the text of user turns: 1 times, "
        "first in data.train, row 7: turn 2."
    ]


@pytest.mark.parametrize("target", list(TrainTarget))
def test_rows_together_give_what_rows_alone_give(target: TrainTarget) -> None:
    rows = [{"messages": messages} for messages in (CHAT, SYSTEM, CHAT[:2], CHAT[:1], CHAT[:3])]
    places = [f"row {index}" for index in range(len(rows))]
    alone = [Renderer(tokenizer_with(CHATML), target)(row, place) for row, place in zip(rows, places, strict=True)]
    assert Renderer(tokenizer_with(CHATML), target).batch(rows, places) == alone
    assert Renderer(tokenizer_with(CHATML), target).batch([], []) == []


def test_an_error_in_one_row_of_many_names_that_row() -> None:
    template = CHATML + "{% if messages | length == 1 %}{{ raise_exception('too short') }}{% endif %}"
    rows = [{"messages": CHAT}, {"messages": CHAT[:1]}]
    with pytest.raises(DataError, match=r"^row b: the chat template refuses this conversation: too short"):
        Renderer(tokenizer_with(template), ALL).batch(rows, ["row a", "row b"])


def test_variables_reach_the_template() -> None:
    template = CHATML.replace("{% for m in", "{{ mood }}{% for m in")
    assert marked(tokenizer_with(template), CHAT, variables={"mood": "glad"}).startswith("glad<|im_start|>user")


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
