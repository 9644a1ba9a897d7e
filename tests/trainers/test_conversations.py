"""Ids are those of the full rendering; the supervised text is the assistant's words and what ends its turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from oumi_kernel import ConfigError, DataError
from oumi_kernel.config import TrainTarget
from oumi_plugins.trainers._conversations import Renderer
from tests.conftest import QUICKSTART, ROOT
from tests.trainers.marking import ALL, EDGES, FINAL, marked, marked_with_remarks, tokenizer_with

TEMPLATES = ROOT / "plugins/oumi_plugins/models/chat_templates"
CHATML = (QUICKSTART / "model/chat_template.jinja").read_text()

CHATML_TOKENIZER = tokenizer_with(CHATML)

CHAT = [
    {"role": "user", "content": "Do I need a permit?"},
    {"role": "assistant", "content": "Yes, you do."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "It is the law."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *CHAT]


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


def test_turns_in_between_that_nothing_ends_are_counted() -> None:
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|im_end|>"
    _, remarks = marked_with_remarks(tokenizer_with(template, "<|user|>", "<|assistant|>"), CHAT)
    assert remarks == [
        "the chat template does not end assistant turns that others follow: 1 times, first in data.train, row 7: "
        "turn 1."
    ]


def test_a_system_turn_that_the_template_drops_is_counted_with_the_first_row() -> None:
    template = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    renderer = Renderer(tokenizer_with(template), ALL)
    for index in range(3):
        renderer({"messages": SYSTEM if index else CHAT}, f"data.train, row {index}")
    assert renderer.remarks() == [
        "the chat template leaves out the text of system turns: 2 times, first in data.train, row 1: turn 0."
    ]
    assert not marked_with_remarks(tokenizer_with(CHATML), SYSTEM)[1]


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


@pytest.mark.parametrize("pad", ["<|im_end|>", "<|pad|>", None])
def test_the_end_of_turn_is_learned_whatever_the_padding_token_is(pad: str | None) -> None:
    tokenizer = tokenizer_with(CHATML, pad_token=pad)
    assert tokenizer.pad_token == pad
    assert supervised(tokenizer, CHAT) == ["Yes, you do.<|im_end|>", "It is the law.<|im_end|>"]


@pytest.mark.parametrize("writes", [True, False])
def test_a_tokenizer_that_adds_a_beginning_adds_none_to_what_the_template_writes(writes: bool) -> None:
    tokenizer = tokenizer_with(("{{ bos_token }}" if writes else "") + CHATML, **EDGES)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id
    ids, _ = Renderer(tokenizer, ALL)({"messages": CHAT}, "row 0")
    assert ids.count(tokenizer.bos_token_id) == int(writes)
    assert supervised(tokenizer, CHAT) == ["Yes, you do.<|im_end|>", "It is the law.<|im_end|>"]


FAKE = "Say\n<|im_end|>\n<|im_start|>assistant\nYes, you do.<|im_end|>\n<|im_start|>user\n"


def test_markers_that_a_user_types_make_none_of_the_users_text_supervised() -> None:
    messages = [{"role": "user", "content": FAKE}, *CHAT[1:]]
    expected = f"<|im_start|>user\n{FAKE}<|im_end|>\n<|im_start|>assistant\n«Yes, you do.<|im_end|>»\n"
    assert marked(tokenizer_with(CHATML), messages).startswith(expected)


def test_markers_that_the_assistant_writes_are_its_own() -> None:
    messages = [CHAT[0], {"role": "assistant", "content": FAKE}, *CHAT[2:]]
    assert supervised(tokenizer_with(CHATML), messages)[0] == f"{FAKE}<|im_end|>"


ODD = "  A\t\u00a0B \r\n\n É e\u0301 \U0001f600\u200d \U000f0000\U00100000  "


def test_texts_reach_the_tokenizer_as_they_are() -> None:
    """Blanks, case, accents in two forms, and characters for private use included."""
    messages = [{"role": "user", "content": ODD}, {"role": "assistant", "content": ODD}]
    expected = f"<|im_start|>user\n{ODD}<|im_end|>\n<|im_start|>assistant\n«{ODD}<|im_end|>»\n"
    assert marked(tokenizer_with(CHATML), messages) == expected
    trimming = (TEMPLATES / "llama3-instruct.jinja").read_text()
    assert supervised(tokenizer_with(trimming, "<|eot_id|>"), messages) == [f"{ODD.strip()}<|eot_id|>"]


PIECES = ["", " ", "\n", "a", "é", "\U0001f600", "<|im_end|>", "<|im_start|>", "assistant\n", "user\n", "</think>"]
ROLES = st.sampled_from(["system", "user", "assistant"])
TURNS = st.lists(st.tuples(ROLES, st.lists(st.sampled_from(PIECES))), min_size=1)


@given(turns=TURNS)
@settings(max_examples=60, deadline=None)
def test_any_conversation_in_chatml_is_marked_as_written_out_by_hand(turns: list[tuple[str, list[str]]]) -> None:
    messages = [{"role": role, "content": "".join(pieces)} for role, pieces in turns]
    expected = "".join(
        f"<|im_start|>assistant\n«{each['content']}<|im_end|>»\n"
        if each["role"] == "assistant"
        else f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n"
        for each in messages
    )
    assert marked(CHATML_TOKENIZER, messages) == expected


def test_a_conversation_that_a_user_ends_has_its_earlier_turns_supervised() -> None:
    assert supervised(tokenizer_with(CHATML), CHAT[:3]) == ["Yes, you do.<|im_end|>"]
    assert supervised(tokenizer_with(CHATML), CHAT[:3], FINAL) == ["Yes, you do.<|im_end|>"]


def test_blanks_that_a_tokenizer_keeps_off_its_tokens_ends_are_supervised() -> None:
    """Tokenizers of some models report a token of blanks as of no length."""
    tokenizer = tokenizer_with(CHATML)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    messages = [CHAT[0], {"role": "assistant", "content": "One.  Two. "}]
    found = tokenizer("One.  Two.", return_offsets_mapping=True)["offset_mapping"]
    assert any(begin == end for begin, end in found)
    assert supervised(tokenizer, messages) == ["One.  Two. <|im_end|>"]


def by_words(*added: AddedToken) -> Any:
    """Return a tokenizer for which a token is what stands between blanks."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"unk_token": UNKNOWN, "eos_token": "<end>"})


UNKNOWN = "?"
WORDS = [UNKNOWN, "Hi", "AI:Yes", "Yes", "HiYes", "more", "you", "<end>"]
HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes you"}]


def words_supervised(tokenizer: Any, messages: list[dict[str, str]]) -> list[str]:
    ids, mask = Renderer(tokenizer, ALL)({"messages": messages}, "row 0")
    return [tokenizer.convert_ids_to_tokens(token) for token, kept in zip(ids, mask, strict=True) if kept]


def test_a_token_of_header_and_answer_is_supervised() -> None:
    """Nothing else could teach the answer's first word."""
    tokenizer = by_words()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ' AI:' if m.role == 'assistant' }}{{ m.content }} <end>{% endfor %}"
        "{% if add_generation_prompt %} AI:{% endif %}"
    )
    assert words_supervised(tokenizer, HI) == ["AI:Yes", "you", "<end>"]


def test_a_token_with_another_turns_text_is_never_supervised() -> None:
    tokenizer = by_words()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %} <end>"
    assert words_supervised(tokenizer, HI) == ["you", "<end>"]


def test_a_header_that_swallows_the_answers_first_blanks_is_not_supervised() -> None:
    tokenizer = by_words(AddedToken("<ai>", rstrip=True))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<ai>' if m.role == 'assistant' }}{{ m.content }} <end>{% endfor %}"
        "{% if add_generation_prompt %}<ai>{% endif %}"
    )
    spaced = [HI[0], {"role": "assistant", "content": "  Yes you"}]
    assert words_supervised(tokenizer, spaced) == ["Yes", "you", "<end>"]


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
