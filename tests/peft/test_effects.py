"""Every key of the section `peft` does something that a run shows, or is refused with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from oumi_kernel import OumiError
from oumi_kernel.config import PeftParams
from tests.trainers.test_effects import Changed, Refused, Runner, differs

LORA = ("--training.use_peft=true", "--training.optimizer=adamw", "--peft.lora_alpha=16")
QUANTISED = {key for key in PeftParams.__struct_fields__ if key.startswith(("q_lora", "bnb_", "llm_", "use_bnb"))}
ELSEWHERE = QUANTISED | {"peft_save_mode"}
"""Keys of quantisation and of saving: other tests look at what they do."""

PEFT: dict[str, list[Changed | Refused]] = {
    "peft_method": [Refused("ia3", "'ia3' does not serve this key", LORA), Changed("none", ("losses", "files"))],
    "peft_kwargs": [Changed("{use_rslora: true}", ("losses",)), Refused("{nothing: 1}", "unknown key 'nothing'")],
    "lora_r": [Changed("4", ("losses",))],
    "lora_alpha": [Changed("32", ("losses",))],
    "lora_dropout": [Changed("0.5", ("losses",))],
    "lora_target_modules": [Changed("[k_proj]", ("losses", "log"))],
    "lora_exclude_modules": [Changed("[.*q_proj]", ("losses", "log"))],
    "lora_target_parameters": [Refused("[experts.nothing]", "matches no parameter of LlamaForCausalLM")],
    "lora_modules_to_save": [Changed("[lm_head]", ("losses", "log"))],
    "lora_bias": [Refused("lora_only", "the modules that are adapted have no biases")],
    "lora_init_weights": [Changed("gaussian", ("losses",))],
    "lora_task_type": [Refused("SEQ_CLS", "no trainer does other tasks yet")],
}


def test_every_key_has_an_entry() -> None:
    assert set(PEFT) | ELSEWHERE == set(PeftParams.__struct_fields__)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("effects"))


def cases() -> Iterator[Any]:
    for name, entries in PEFT.items():
        for case in entries:
            yield pytest.param(f"--peft.{name}={case.value}", case, id=f"{name}={case.value}")


@pytest.mark.parametrize(("flag", "case"), list(cases()))
def test_a_key_shows_or_says_why_not(runner: Runner, flag: str, case: Changed | Refused) -> None:
    if isinstance(case, Refused):
        with pytest.raises(OumiError, match=case.match):
            runner.run(*LORA, flag)
        return
    given = LORA if "none" not in flag else LORA[1:]
    before, after = runner.run(*LORA), runner.run(*given, flag)
    for name in case.shows:
        assert differs(getattr(before, name), getattr(after, name)), name
