"""What is said about quantised weights from the keys alone."""

from __future__ import annotations

import pytest

from oumi_kernel.errors import ConfigError, Problem
from oumi_kernel.loading import load_text
from tests.conftest import minimal_yaml


def found(**sections: str) -> dict[str, Problem]:
    try:
        problems = load_text(minimal_yaml(**sections), "c").warnings
    except ConfigError as error:
        problems = error.problems
    return {problem.path: problem for problem in problems}


@pytest.mark.parametrize("name", ["pisa", "PISSA", "pissa_niter_16", "olora", "LOFTQ"])
def test_an_initialisation_that_changes_the_base_is_refused_with_one_that_does_not(name: str) -> None:
    problem = found(peft=f"  q_lora: true\n  lora_init_weights: {name}\n")["peft.lora_init_weights"]
    assert problem.severity == "error"
    assert "DEFAULT or EVA" in problem.hint


@pytest.mark.parametrize("name", ["default", "random", "gaussian", "eva"])
def test_an_initialisation_that_leaves_the_base_alone_is_not_refused(name: str) -> None:
    assert found(peft=f"  q_lora: true\n  lora_init_weights: {name}\n") == {}


@pytest.mark.parametrize(("given", "nearest"), [("float64", "float32"), ("uint8", "bfloat16"), ("AUTO", "bfloat16")])
def test_a_format_without_kernels_is_refused_with_the_nearest(given: str, nearest: str) -> None:
    problem = found(peft=f"  q_lora: true\n  bnb_4bit_compute_dtype: {given}\n")["peft.bnb_4bit_compute_dtype"]
    assert problem.severity == "error"
    assert problem.hint == f"Set it to {nearest}."


def test_formats_of_4_bit_layers_do_not_matter_in_8_bits() -> None:
    problems = found(
        model="  torch_dtype_str: float64\n", peft="  q_lora: true\n  q_lora_bits: 8\n  bnb_4bit_compute_dtype: uint8\n"
    )
    assert {path: problem.severity for path, problem in problems.items()} == {"peft.bnb_4bit_compute_dtype": "warning"}
    assert "q_lora_bits is 8" in problems["peft.bnb_4bit_compute_dtype"].message


@pytest.mark.parametrize("off", ["training.use_peft", "peft.peft_method"])
def test_quantisation_without_an_adapter_names_the_key_that_turns_it_off(off: str) -> None:
    section, _, key = off.partition(".")
    value = "false" if key == "use_peft" else "none"
    sections = {"peft": "  q_lora: true\n"}
    sections[section] = sections.get(section, "") + f"  {key}: {value}\n"
    problem = found(**sections)["peft.q_lora"]
    assert problem.severity == "error"
    assert off in problem.message
    assert off in problem.hint


def test_the_qlora_example_of_the_specification_has_nothing_wrong_with_it() -> None:
    peft = (
        "  enable_peft: true\n  r: 16\n  load_in_4bit: true\n  bnb_4bit_compute_dtype: float16\n"
        "  bnb_4bit_quant_type: nf4\n  bnb_4bit_use_double_quant: true\n"
    )
    assert found(training="  bf16: false\n  fp16: true\n", peft=peft) == {}
