"""A flag means what the same text means in the file, unless the key takes text."""

from __future__ import annotations

from typing import Any

import pytest

from oumi_kernel.errors import ConfigError
from oumi_kernel.loading import LoadedConfig, load_text, render_problems, split_overrides
from tests.conftest import minimal_yaml


def load(*flags: str, text: str = "") -> LoadedConfig:
    return load_text(text or minimal_yaml(), "c.yaml", split_overrides(flags)[0])


def failure(*flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*flags)
    return render_problems(caught.value.problems)


@pytest.mark.parametrize(
    "typed", ["true", "2024", "5e-5", "1_0", "0x10", "[a, b]", "{a: 1}", "a: b", "#1", "a #1", "*x", "!t", "no", "- a"]
)
def test_a_key_that_takes_text_takes_what_was_typed(typed: str) -> None:
    assert load("--training.run_name", typed).config.training.run_name == typed


def test_null_is_no_text() -> None:
    text = minimal_yaml(training="  run_name: x\n")
    assert load("--training.run_name=null", text=text).config.training.run_name is None


def test_quotes_are_those_of_yaml() -> None:
    training = load("--training.run_name='a: b'", "--training.trainer_kwargs.x", '"5e-5"').config.training
    assert (training.run_name, training.trainer_kwargs) == ("a: b", {"x": "5e-5"})


def test_values_in_a_mapping_have_the_text_of_their_own() -> None:
    assert load("--data.train", "{target_col: 2024}").config.data.train.target_col == "2024"


def test_text_typed_for_a_mapping_is_not_the_text_of_its_keys() -> None:
    assert "data.train.target_col: expected text, or null, got true." in failure("--data.train", "{target_col: true}")


def test_a_mapping_is_merged_and_an_empty_one_empties() -> None:
    text = minimal_yaml(training="  trainer_kwargs: {a: {b: 1, c: 2}}\n")
    assert load("--training.trainer_kwargs", "{a: {b: 3}}", text=text).config.training.trainer_kwargs == {
        "a": {"b": 3, "c": 2}
    }
    assert load("--training.trainer_kwargs={}", text=text).config.training.trainer_kwargs == {}


def test_a_list_is_replaced() -> None:
    text = minimal_yaml(peft="  lora_target_modules: [a, b]\n")
    assert load("--peft.lora_target_modules", "[c]", text=text).config.peft.lora_target_modules == ["c"]


def test_the_last_flag_wins_also_over_parts_of_it() -> None:
    loaded = load(
        "--training.trainer_kwargs.a=1", "--training.trainer_kwargs.a={b: 2}", "--training.trainer_kwargs.a.b=3"
    )
    assert loaded.config.training.trainer_kwargs == {"a": {"b": 3}}


def test_a_flag_may_be_another_spelling_or_an_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK_OF_LORA", "16")
    loaded = load("--peft.r", "${env:RANK_OF_LORA}")
    assert loaded.config.peft.lora_r == 16
    origin = loaded.document.origin("peft.lora_r")
    assert (origin.kind, origin.note, str(origin.place)) == ("alias", "peft.r", "command line")


@pytest.mark.parametrize("option", ["-c", "--dry-run", "-v"])
def test_an_option_after_a_switch_is_not_its_value(option: str) -> None:
    overrides, rest = split_overrides(["--training.compile", option, "c.yaml"])
    assert [(o.path, o.text) for o in overrides] == [("training.compile", None)]
    assert rest == [option, "c.yaml"]


@pytest.mark.parametrize("number", ["-1", "-1e-3", "-.5", "-.inf"])
def test_a_negative_number_is_a_value(number: str) -> None:
    overrides, rest = split_overrides(["--a.b", number])
    assert (overrides[0].text, rest) == (number, [])


def test_text_that_begins_with_a_bracket_needs_quotes_and_the_message_says_how() -> None:
    assert "Put text that begins with a bracket in quotes" in failure("--peft.lora_target_modules", "[a-z]+.q_proj")
    taken = load("--peft.lora_target_modules", '"[a-z]+.q_proj"').config.peft.lora_target_modules
    assert taken == "[a-z]+.q_proj"


def test_a_problem_in_a_flag_shows_the_flag_and_not_the_line_that_it_replaces() -> None:
    text = minimal_yaml(training="  max_steps: 1\n")
    with pytest.raises(ConfigError) as caught:
        load("--training.max_steps", "many", text=text)
    assert render_problems(caught.value.problems) == (
        "command line: error[wrong-type] training.max_steps: expected a whole number >= -1, got 'many'.\n"
        "     | --training.max_steps many\n"
        "1 error, 0 warnings"
    )


def test_a_part_of_a_flag_is_shown_with_the_whole_flag() -> None:
    assert (
        "command line: error[unknown-key] training.grpo.a: unknown key 'a'.\n     | --training.grpo {a: 1}"
        in failure("--training.grpo", "{a: 1}")
    )


@pytest.mark.parametrize("flag", ["--a..b=1", "--a[x].b=1", "--a[0]b=1", "--a.=1"])
def test_a_key_that_cannot_be_read_is_an_error(flag: str) -> None:
    with pytest.raises(ConfigError, match="key cannot be read; write it like"):
        split_overrides([flag])


def test_lists_do_not_grow_by_flags() -> None:
    assert "data.train.datasets has 1 items; the first is [0]." in failure("--data.train.datasets[1].split=x")


def kinds(loaded: LoadedConfig, *paths: str) -> list[Any]:
    return [loaded.document.origin(path).kind for path in paths]


def test_the_origin_of_a_value_is_the_last_that_set_it() -> None:
    loaded = load("--training.seed=2", text=minimal_yaml(training="  seed: 1\n  max_steps: 3\n", peft=""))
    paths = "training.seed", "training.max_steps", "training.save_steps", "peft"
    assert kinds(loaded, *paths) == ["override", "file", "default", "default"]


@pytest.mark.parametrize("flags", [["--training.run_name="], ["--training.run_name", ""], ["--training.run_name= "]])
def test_a_flag_without_a_value_is_an_error_that_says_how_to_write_none(flags: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"training.run_name: has no value. Write null for none"):
        load(*flags)
    assert load("--training.run_name=null").config.training.run_name is None
    assert load('--training.run_name=""').config.training.run_name == ""


@pytest.mark.parametrize("words", [["--model.model_kwargs", "{a:", "true}"], ["--model.model_kwargs={a:", "true}"]])
def test_a_mapping_that_nobody_quoted_says_where_the_quotes_belong(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"goes on in the next word. Put .* in quotes: \S+[ =]'{a: true}'\."):
        split_overrides(["run", "train.yaml", *words, "--training.compile"])


def test_a_mapping_that_is_not_closed_at_all_is_still_an_error_of_its_own() -> None:
    overrides, rest = split_overrides(["--model.model_kwargs={a:", "train.yaml"])
    assert (overrides[0].text, rest) == ("{a:", ["train.yaml"])
