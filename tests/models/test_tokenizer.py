"""Tokenizers: where they come from, padding tokens, limits, arguments."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from oumi_kernel import ConfigError
from tests.models.conftest import TINY, Load

KNOWN, NEW = "<|endoftext|>", "<pad!>"


def test_the_length_limit_of_the_section_is_the_tokenizers(load: Load) -> None:
    assert load(model_max_length=77).tokenizer().model_max_length == 77


def test_a_name_beginning_with_a_dot_is_read_beside_the_configuration(load: Load, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    assert len(load(model_name="./model").tokenizer()) == 1024


def test_a_padding_token_of_the_vocabulary_is_taken_and_not_added(load: Load) -> None:
    tokenizer = load(tokenizer_pad_token=KNOWN).tokenizer()
    assert (tokenizer.pad_token_id, len(tokenizer)) == (0, 1024)


def test_a_new_padding_token_is_added_and_the_embeddings_grow(load: Load) -> None:
    loader = load(tokenizer_pad_token=NEW)
    tokenizer = loader.tokenizer()
    assert (tokenizer.pad_token_id, len(tokenizer)) == (1024, 1025)
    model = loader.model(tokenizer)
    assert len(model.get_input_embeddings().weight) == 1025
    assert model.config.vocab_size == 1025


def test_known_arguments_reach_the_tokenizer(load: Load) -> None:
    tokenizer = load(tokenizer_kwargs={"pad_token": "<|endoftext|>", "padding_side": "left"}).tokenizer()
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<|endoftext|>", "left")


def test_an_argument_that_the_tokenizer_does_not_know_is_an_error(load: Load) -> None:
    message = r"model.tokenizer_kwargs.padd_token: .* knows no argument 'padd_token'. did you mean 'pad_token'\?"
    with pytest.raises(ConfigError, match=message):
        load(tokenizer_kwargs={"padd_token": "x"}).tokenizer()


def test_the_key_that_names_the_tokenizer_is_the_one_blamed(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"model.tokenizer_name: 'no/such' is no folder here") as caught:
        load(tokenizer_name="no/such").tokenizer()
    assert caught.value.exit_code == 2
    assert "could not be had from the hub" in str(caught.value)


def test_a_special_token_that_the_library_drops_is_an_error(load: Load, tmp_path: Path) -> None:
    load(tokenizer_kwargs={"extra_special_tokens": ["<one>"]}).tokenizer().save_pretrained(tmp_path / "one")
    names = {"tokenizer_name": str(tmp_path / "one")}
    two = load(**names, tokenizer_kwargs={"extra_special_tokens": ["<two>"]}).tokenizer()
    assert two.convert_tokens_to_ids(["<one>", "<two>"]) == [1024, 1025]
    with pytest.raises(ConfigError, match=r"additional_special_tokens: '<two>' was not added.*extra_special_tokens"):
        load(**names, tokenizer_kwargs={"additional_special_tokens": ["<two>"]}).tokenizer()
