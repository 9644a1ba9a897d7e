"""The shipped templates give the text that the models were trained on, as their authors document it."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError

from oumi_kernel import ConfigError
from oumi_plugins.models._chat_template import FOLDER
from tests.models.conftest import TINY, Load

SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

EXPECTED = {
    "chat_ml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    ),
    "qwen2-instruct": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama3-instruct": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "zephyr": (
        "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\nBye</s>\n<|assistant|>\n"
    ),
    "phi3-instruct": (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nBye<|end|>\n"
        "<|assistant|>\n"
    ),
    "gpt2": "Be brief.</s>Hi</s>Hello</s>Bye</s>",
    "default": "<s>SYSTEM:\nBe brief.</s>\nUSER:\nHi</s>\nASSISTANT:\nHello</s>\nUSER:\nBye</s>\nASSISTANT:\n",
    "default_gen": "<s>SYSTEM:\nBe brief.</s>\nUSER:\nHi</s>\nASSISTANT:\nHello</s>\nUSER:\nBye</s>\nASSISTANT:\n",
}
GEMMA = (
    "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
)


def tokenizer(load: Load, name: str):
    return load(chat_template=name, tokenizer_kwargs=TOKENS).tokenizer()


def test_every_shipped_template_is_tested_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.jinja")} == {*EXPECTED, "gemma2-it"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_conversation_is_rendered_in_the_models_own_format(load: Load, name: str) -> None:
    prompt = name != "gpt2"
    text = tokenizer(load, name).apply_chat_template([SYSTEM, *TALK], tokenize=False, add_generation_prompt=prompt)
    assert text == EXPECTED[name]


def test_gemma_calls_the_assistant_model_and_has_no_system_role(load: Load) -> None:
    gemma = tokenizer(load, "gemma2-it")
    assert gemma.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == GEMMA
    with pytest.raises(TemplateError, match="Gemma 2 has no system role"):
        gemma.apply_chat_template([SYSTEM, *TALK], tokenize=False)
    with pytest.raises(TemplateError, match="must alternate"):
        gemma.apply_chat_template([TALK[0], TALK[0]], tokenize=False)


def test_phi3_closes_a_finished_conversation_with_the_end_token(load: Load) -> None:
    text = tokenizer(load, "phi3-instruct").apply_chat_template(TALK[:2], tokenize=False)
    assert text == "<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n</s>"


def test_qwen2_begins_with_its_own_system_turn_when_the_data_has_none(load: Load) -> None:
    text = tokenizer(load, "qwen2-instruct").apply_chat_template(TALK[:1], tokenize=False)
    assert text == ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n")


def test_generation_marks_cover_the_assistants_text_and_its_end_token(load: Load) -> None:
    marked = tokenizer(load, "default_gen")
    result = marked.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    ids = [token for token, on in zip(result["input_ids"], result["assistant_masks"], strict=True) if on]
    assert marked.decode(ids) == "Hello</s>"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.jinja")))
def test_tool_calls_are_refused_rather_than_dropped(load: Load, name: str) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(TemplateError, match="has no tool calls"):
        tokenizer(load, name).apply_chat_template([TALK[0], call], tokenize=False)


@pytest.mark.parametrize("name", [None, "auto"])
def test_without_a_name_the_tokenizers_own_template_stays(load: Load, name: str | None) -> None:
    own = (TINY / "chat_template.jinja").read_text().removesuffix("\n")
    assert load(chat_template=name).tokenizer().chat_template.removesuffix("\n") == own


def test_a_template_file_is_read_beside_the_configuration(load: Load, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    mine = load(chat_template="./mine.jinja").tokenizer()
    assert mine.apply_chat_template(TALK, tokenize=False) == "[Hi][Hello][Bye]"


def test_a_template_that_is_no_jinja_is_named_with_its_line(load: Load, tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_text("fine\n{% for m in %}")
    with pytest.raises(ConfigError, match=r"model.chat_template: .*bad.jinja:2: "):
        load(chat_template="./bad.jinja").tokenizer()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llama3-instrct", r"did you mean 'llama3-instruct'\? Shipped: chat_ml, default"),
        ("./none.jinja", r"there is no file '.*none.jinja'"),
        ("llava", r"'llava' is for vision-language models"),
    ],
)
def test_an_unknown_template_is_an_error_that_says_the_way_out(load: Load, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(chat_template=name).tokenizer()
