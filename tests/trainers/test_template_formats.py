"""Formats of further families, in templates written for these tests, and what a person would mark in each."""

from __future__ import annotations

import pytest

from tests.trainers.marking import EDGES, marked, tokenizer_with
from tests.trainers.test_published_templates import CHAT, CHAT_IN_CHATML

FORMATS = {
    # format of SmolLM2: ChatML with a system turn of its own
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}": (
        "<|im_start|>system\nYou help.<|im_end|>\n" + CHAT_IN_CHATML
    ),
    # format of Phi-4: no line breaks at all
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}": (
        CHAT_IN_CHATML.replace("user\n", "user<|im_sep|>").replace("assistant\n", "assistant<|im_sep|>")
    ).replace("\n", ""),
    # format of Vicuna: words, blanks, and the end token
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}{% else %}"
    "{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}": (
        "USER: Permit? ASSISTANT:« Yes, you do.</s>»USER: Why? ASSISTANT:« It is law.</s>»"
    ),
    # format of Llama 2: no generation prompt; the blank before the answer is in the answer's first token
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}"
    "{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}": (
        "[INST] Permit? [/INST]« Yes, you do. </s>»[INST] Why? [/INST]« It is law. </s>»"
    ),
    # format of Command R: two tokens end a turn
    "{% for m in messages %}{{ '<|START|><|' + m.role + '|>' + m.content }}"
    "{% if m.role == 'assistant' %}<|END_RESPONSE|>{% endif %}<|END|>{% endfor %}"
    "{% if add_generation_prompt %}<|START|><|assistant|>{% endif %}": (
        "<|START|><|user|>Permit?<|END|><|START|><|assistant|>«Yes, you do.<|END_RESPONSE|><|END|>»"
        "<|START|><|user|>Why?<|END|><|START|><|assistant|>«It is law.<|END_RESPONSE|><|END|>»"
    ),
    # formats that think in every turn: the prompt begins the thought, and goes on in another way than the text
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}<think></think>"
    "{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}": (
        CHAT_IN_CHATML.replace("«", "«<think></think>")
    ),
    # a template that knows no generation prompts: the header is the template's all the same
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}": (
        CHAT_IN_CHATML
    ),
    # a prompt that ends within a word of the text
    "{% for m in messages %}{{ m.role + ':' }}{{ '(' if m.role == 'assistant' }}{{ m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}": (
        "user:Permit?</s>assistant:«(Yes, you do.</s>»user:Why?</s>assistant:«(It is law.</s>»"
    ),
    # a template that always writes a generation prompt, as the first of Llama 3 does
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}": CHAT_IN_CHATML + "<|im_start|>assistant\n",
}
FORMAT_MARKERS = (
    "<|im_start|> <|im_sep|> <|im_end|> <|START|> <|END|> <|END_RESPONSE|> <|user|> <|assistant|> [INST] [/INST]"
).split()


@pytest.mark.parametrize("template", FORMATS)
def test_formats_of_other_families_are_read_as_well(template: str) -> None:
    tokenizer = tokenizer_with(template, *FORMAT_MARKERS, **EDGES)
    assert marked(tokenizer, CHAT) == FORMATS[template]
