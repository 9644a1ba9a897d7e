"""Expressions are replaced once, with the type of what they stand for, and secrets stay out of messages and files."""

from __future__ import annotations

import pytest

from oumi_kernel.errors import ConfigError
from oumi_kernel.loading import LoadedConfig, load_text, render_problems, to_yaml
from oumi_kernel.manifest import effective_config
from tests.conftest import minimal_yaml


def load(training: str, **sections: str) -> LoadedConfig:
    return load_text(minimal_yaml(training=training, **sections), "c.yaml")


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7), ("5e-5", 5e-5), ("true", True), ("", None), ("no", "no"), ("a b", "a b")]
)
def test_a_whole_value_takes_the_type_of_the_variable(
    text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUE", text)
    assert load("  trainer_kwargs: {a: '${env:VALUE}'}\n").config.training.trainer_kwargs == {"a": value}


def test_a_key_that_takes_text_takes_the_text_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUE", "1_0")
    assert load("  run_name: ${env:VALUE}\n").config.training.run_name == "1_0"


def test_inside_text_a_value_is_written_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALUE", "true")
    name = "${env:VALUE}-${ref:training.learning_rate}-${ref:training.seed}"
    text = f"  learning_rate: 5e-5\n  seed: 1_0\n  run_name: {name}\n"
    assert load(text).config.training.run_name == "true-5e-5-1_0"


def test_what_a_variable_holds_is_not_searched_for_expressions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setenv("OUTER", "${env:SECRET}")
    loaded = load("  run_name: ${env:OUTER}\n  output_dir: ${ref:training.run_name}\n")
    assert (loaded.config.training.run_name, loaded.config.training.output_dir) == ("${env:SECRET}",) * 2
    assert loaded.warnings == ()


def test_a_refused_value_of_a_variable_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(ConfigError) as caught:
        load("  max_steps: ${env:SECRET}\n  eval_strategy: ${ref:training.max_steps}\n  bf16: ${env:SECRET}\n")
    text = render_problems(caught.value.problems)
    assert "training.max_steps: expected a whole number >= -1, got the value of ${env:SECRET}." in text
    assert "training.eval_strategy: the value of ${ref:training.max_steps} is not a valid choice." in text
    assert "training.bf16: expected true or false, got ${env:SECRET}." in text
    assert "hunter2" not in text


def test_the_effective_configuration_names_variables_under_any_key_and_spelling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "16")
    loaded = load(
        "  trainer_kwargs: {'a.b[0]': '${env:SECRET}', 'c d': ['${ref:peft.r}']}\n", peft="  r: ${env:SECRET}\n"
    )
    assert loaded.config.peft.lora_r == 16
    tree = effective_config(loaded)
    assert tree["training"]["trainer_kwargs"] == {"a.b[0]": "${env:SECRET}", "c d": ["${ref:peft.r}"]}
    assert tree["peft"]["lora_r"] == "${env:SECRET}"
    assert "r" not in tree["peft"]


def test_an_effective_configuration_loads_again_as_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "16")
    first = load("  max_steps: ${env:STEPS}\n  learning_rate: 5e-5\n  mixed_precision_dtype: BF16\n")
    again = load_text(to_yaml(effective_config(first)), "again.yaml")
    assert again.config == first.config


def test_an_expression_without_a_value_leaves_one_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError) as caught:
        load("  seed: ${env:NOWHERE}\n")
    (problem,) = caught.value.problems
    assert problem.message.endswith("Set it, or write ${env:NOWHERE:default}.")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("${model.model_name}", "did you mean ${ref:model.model_name}?"),
        ("${oc.env:HOME}", "Only ${env:NAME} and ${ref:section.key} are replaced."),
        ("a ${", "Only ${env:NAME} and ${ref:section.key} are replaced."),
    ],
)
def test_any_other_dollar_brace_stays_with_a_warning(text: str, hint: str) -> None:
    loaded = load(f"  run_name: {text}\n")
    assert loaded.config.training.run_name == text
    assert [warning.hint for warning in loaded.warnings] == [hint]


def test_a_cycle_is_shown_as_it_runs() -> None:
    text = "  run_name: x${ref:training.output_dir}\n  output_dir: ${ref:training.run_name}\n"
    with pytest.raises(
        ConfigError, match=r"refers to itself: training\.run_name -> training\.output_dir -> training\.run_name"
    ):
        load(text)
