"""The library's other methods: each trains, and opens again by the library alone with the logits that it had."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from oumi_kernel import ConfigError
from tests.peft.conftest import TINY, logits, opened
from tests.trainers.conftest import Train

METHODS = {
    "ia3": (),
    "vera": ("--peft.peft_kwargs.r=8",),
    "oft": ("--peft.peft_kwargs.oft_block_size=8",),
    "boft": ("--peft.lora_target_modules=[q_proj]",),
    "loha": ("--peft.lora_target_modules=[q_proj]", "--peft.peft_kwargs.r=2"),
    "lokr": ("--peft.lora_target_modules=[q_proj]",),
    "prompt_tuning": ("--peft.peft_kwargs.num_virtual_tokens=5",),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_opens_again(train: Train, name: str) -> None:
    run = train(f"--peft.peft_method={name}", "--training.optimizer=adamw", *METHODS[name], name=name)
    assert run.figures("loss")[0] != run.figures("loss")[1]
    model = opened(run.folder)
    assert model.peft_config["default"].peft_type.value.lower() == name
    assert not torch.equal(logits(model)[:, -5:], logits(AutoModelForCausalLM.from_pretrained(TINY))[:, -5:])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--peft.peft_method=ia3", "--peft.lora_r=4"), r"'ia3' does not serve this key: .*peft\.peft_kwargs"),
        (("--peft.peft_method=vera", "--peft.lora_exclude_modules=[a]"), "'vera' does not serve this key"),
        (("--peft.peft_method=prompt_tuning",), "'num_virtual_tokens' is required"),
        (("--peft.peft_method=oft", "--peft.peft_kwargs.blocks=8"), "unknown key 'blocks'"),
        (("--peft.peft_method=oft", "--peft.peft_kwargs.r=8"), "peft refuses these settings"),
        (("--peft.peft_method=lorra",), "did you mean 'lora'"),
    ],
)
def test_what_a_method_cannot_do_is_refused(train: Train, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(*flags)
