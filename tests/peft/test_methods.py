"""The library's other methods: each trains, and opens again by the library alone with the logits that it had."""

from __future__ import annotations

import os

import pytest
import torch
from transformers import AutoModelForCausalLM

from oumi_kernel import ConfigError
from tests.peft.conftest import TINY, logits, opened
from tests.trainers.conftest import Train

Q_PROJ = "--peft.lora_target_modules=[q_proj]"
METHODS = {
    "ia3": (),
    "vera": ("--peft.peft_kwargs.r=8",),
    "oft": ("--peft.peft_kwargs.oft_block_size=8",),
    "boft": (Q_PROJ,),
    "loha": (Q_PROJ, "--peft.peft_kwargs.r=2"),
    "lokr": (Q_PROJ,),
    "prompt_tuning": ("--peft.peft_kwargs.num_virtual_tokens=5",),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_opens_again(train: Train, name: str) -> None:
    run = train(f"--peft.peft_method={name}", "--training.optimizer=adamw", *METHODS[name], name=name)
    assert run.figures("loss")[0] != run.figures("loss")[1]
    model = opened(run.folder)
    assert model.peft_config["default"].peft_type.value.lower() == name
    assert not torch.equal(logits(model)[:, -5:], logits(AutoModelForCausalLM.from_pretrained(TINY))[:, -5:])


def test_boft_leaves_the_compilers_of_the_environment(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc")
    monkeypatch.delenv("CXX", raising=False)
    train("--peft.peft_method=boft", *METHODS["boft"], name="boft")
    assert os.environ["CC"] == "cc"
    assert "CXX" not in os.environ


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--peft.peft_method=ia3", "--peft.lora_r=4"), r"'ia3' does not serve this key: .*peft\.peft_kwargs"),
        (("--peft.peft_method=vera", "--peft.lora_exclude_modules=[a]"), "'vera' does not serve this key"),
        (("--peft.peft_method=prompt_tuning",), "'num_virtual_tokens' is required"),
        (("--peft.peft_method=oft", "--peft.peft_kwargs.blocks=8"), "unknown key 'blocks'"),
        (("--peft.peft_method=oft", "--peft.peft_kwargs.r=8"), r"peft\.peft_kwargs\.r: peft refuses these settings"),
        (("--peft.peft_method=lorra",), "did you mean 'lora'"),
    ],
)
def test_what_a_method_cannot_do_is_refused(train: Train, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(*flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="peft can build more of them where there is a GPU")
def test_butterfly_factors_that_cannot_be_built_are_refused(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"boft_n_butterfly_factor: peft builds 2 .* Set it to 1"):
        train("--peft.peft_method=boft", Q_PROJ, "--peft.peft_kwargs.boft_n_butterfly_factor=2")
