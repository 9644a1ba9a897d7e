"""`model.chat_template_kwargs`: what the template reads is accepted, what it never reads is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from oumi_kernel import ConfigError
from tests.models.conftest import Load

TEMPLATE = """{% if enable_thinking is defined and not enable_thinking %}quiet {% endif %}
{%- for m in messages %}{% set shown = m.content %}{% generation %}{{ shown }}{% endgeneration %}{{ tone }}
{%- if loop.last %}{% break %}{% endif %}{% endfor %}{{ strftime_now('%Y') }}"""


@pytest.fixture
def template(tmp_path: Path) -> str:
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    return str(tmp_path / "own.jinja")


def test_variables_that_the_template_reads_are_accepted(load: Load, template: str) -> None:
    tokenizer = load(chat_template=template, chat_template_kwargs={"enable_thinking": False, "tone": "!"}).tokenizer()
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, enable_thinking=False)
    assert text.startswith("quiet Hi")


def test_a_variable_that_the_template_never_reads_is_an_error_with_near_names(load: Load, template: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.chat_template_kwargs\.enable_thinkin: .*never reads") as caught:
        load(chat_template=template, chat_template_kwargs={"enable_thinkin": False}).tokenizer()
    assert "did you mean 'enable_thinking'? It reads: enable_thinking, tone." in str(caught.value)


@pytest.mark.parametrize("name", ["add_generation_prompt", "messages", "tools", "tokenize", "self"])
def test_what_is_set_for_each_conversation_cannot_be_set(load: Load, template: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"kwargs\.{name}: '{name}' is set for each conversation"):
        load(chat_template=template, chat_template_kwargs={name: True}).tokenizer()


def test_variables_without_a_template_are_an_error(load: Load, tmp_path: Path) -> None:
    loader = load()
    loader.tokenizer().save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"chat_template_kwargs: the tokenizer has no chat template"):
        load(tokenizer_name=str(tmp_path / "bare"), chat_template_kwargs={"tone": "!"}).tokenizer()
