"""`{% generation %}` blocks choose among the assistant's text, never outside of it, and never without its end."""

from __future__ import annotations

import pytest

from oumi_kernel import DataError
from tests.trainers.marking import EDGES, FINAL, marked, marked_with_remarks, template_of, tokenizer_of, tokenizer_with

CHAT = [
    {"role": "user", "content": "Do I need a permit?"},
    {"role": "assistant", "content": "Yes, you do."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "It is the law."},
]
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def chatml(assistant: str, user: str = "{{ m['content'] }}<|im_end|>\n") -> str:
    """Return a template whose turns are written as given; `⟦` and `⟧` begin and end a block."""
    body = assistant.replace("⟦", "{% generation %}").replace("⟧", "{% endgeneration %}")
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
        f"{body}{{% else %}}{user}{{% endif %}}{{% endfor %}}{PROMPT}"
    ).replace("m['content']", "m.content")


def expected(first: str, second: str) -> str:
    return (
        f"<|im_start|>user\nDo I need a permit?<|im_end|>\n<|im_start|>assistant\n{first}\n"
        f"<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n{second}\n"
    )


WHOLE = expected("«Yes, you do.<|im_end|>»", "«It is the law.<|im_end|>»")
ENDS = "leaves the end of assistant turns out of its generation marks; it is supervised all the same: 2 times"


def test_blocks_around_text_and_end_give_just_that() -> None:
    tokenizer = tokenizer_with(chatml("⟦{{ m.content }}<|im_end|>⟧{{ '\n' }}"))
    assert marked_with_remarks(tokenizer, CHAT) == (WHOLE, [])
    assert marked(tokenizer, CHAT, FINAL) == expected("Yes, you do.<|im_end|>", "«It is the law.<|im_end|>»")


def test_a_line_break_in_the_block_behind_the_end_is_the_authors_choice() -> None:
    text, remarks = marked_with_remarks(tokenizer_with(chatml("⟦{{ m.content + '<|im_end|>\n' }}⟧")), CHAT)
    assert text == WHOLE.replace("<|im_end|>»\n", "<|im_end|>\n»")
    assert not remarks


def test_blocks_that_leave_out_the_end_get_it_and_that_is_said() -> None:
    text, remarks = marked_with_remarks(tokenizer_with(chatml("⟦{{ m.content }}⟧<|im_end|>{{ '\n' }}")), CHAT)
    assert text == WHOLE
    assert len(remarks) == 1
    assert ENDS in remarks[0]
    assert "first in data.train, row 7: turn 1" in remarks[0]


def test_a_block_around_a_part_of_the_text_is_followed() -> None:
    """As in templates that leave out of the loss what an assistant quotes."""
    template = chatml("{{ m.content[:5] }}⟦{{ m.content[5:] + '<|im_end|>' }}⟧{{ '\n' }}")
    assert marked(tokenizer_with(template), CHAT) == expected("Yes,« you do.<|im_end|>»", "It is« the law.<|im_end|>»")


HEADER = "{{ '<|im_start|>' + m['role'] + '\n' }}"
AROUND = {
    "a header": chatml("⟦{{ m.content }}<|im_end|>⟧{{ '\n' }}").replace(
        HEADER, f"{{% generation %}}{HEADER}{{% endgeneration %}}"
    ),
    "a user's turn": chatml(
        "⟦{{ m.content }}<|im_end|>⟧{{ '\n' }}",
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}",
    ),
}


@pytest.mark.parametrize("template", AROUND.values(), ids=AROUND)
def test_blocks_around_other_text_supervise_none_of_it_and_that_is_said(template: str) -> None:
    text, remarks = marked_with_remarks(tokenizer_with(template), CHAT)
    assert text == WHOLE
    assert remarks == [
        "the chat template marks text outside of the assistant's turns, which is not supervised: 1 times, "
        "first in data.train, row 7."
    ]


def test_blocks_that_mark_nothing_are_an_error_and_never_an_empty_mask() -> None:
    template = chatml("{% if false %}⟦x⟧{% endif %}{{ m.content }}<|im_end|>{{ '\n' }}")
    with pytest.raises(DataError, match=r"row 7: the generation marks of the chat template choose nothing here\. Use"):
        marked(tokenizer_with(template), CHAT)


def test_a_turn_that_the_author_does_not_mark_is_not_supervised() -> None:
    template = chatml(
        "{% if loop.last %}⟦{{ m.content }}<|im_end|>⟧{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}"
    )
    assert marked(tokenizer_with(template), CHAT) == expected("Yes, you do.<|im_end|>", "«It is the law.<|im_end|>»")
    assert "«" not in marked(tokenizer_with(template), CHAT[:1])


def test_a_published_template_that_marks_the_header_too_is_held_to_the_turn() -> None:
    _, remarks = marked_with_remarks(tokenizer_of("deepseek_r1_distill_training"), CHAT)
    assert len(remarks) == 1
    assert "marks text outside of the assistant's turns" in remarks[0]


def test_variables_reach_templates_with_blocks() -> None:
    template = "{{ mood }}" + chatml("⟦{{ m.content }}<|im_end|>⟧{{ '\n' }}")
    assert marked(tokenizer_with(template), CHAT, variables={"mood": "glad"}) == "glad" + WHOLE


def test_a_template_that_never_writes_the_same_text_twice_is_an_error() -> None:
    template = "{{ strftime_now('%f') }}" + chatml("⟦{{ m.content }}<|im_end|>⟧{{ '\n' }}")
    with pytest.raises(DataError, match="row 7: the chat template renders another text with its generation marks"):
        marked(tokenizer_with(template), CHAT)


def test_special_tokens_reach_templates_with_blocks() -> None:
    template = "{{ bos_token }}" + chatml("⟦{{ m.content + eos_token }}⟧{{ '\n' }}")
    text = marked(tokenizer_with(template, **EDGES), CHAT)
    assert text == "<s>" + WHOLE.replace("<|im_end|>»", "</s>»")


def test_the_published_template_without_blocks_is_the_one_it_was_made_from() -> None:
    assert "generation %}" in template_of("deepseek_r1_distill_training")
    assert "generation %}" not in template_of("deepseek_r1_distill")
