"""What the guide to quantisation shows is true."""

from __future__ import annotations

import re

import pytest

from oumi_kernel.errors import ConfigError
from oumi_kernel.loading import load_text, split_overrides
from tests.conftest import ROOT

GUIDE = (ROOT / "docs/guides/quantisation.md").read_text()
(SAMPLE,) = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def test_its_configuration_loads_without_a_word() -> None:
    loaded = load_text(SAMPLE, "train.yaml")
    assert loaded.config.peft.q_lora
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    "flags",
    [
        ["--training.use_peft=false"],
        ["--model.load_pretrained_weights=false"],
        ["--peft.bnb_4bit_compute_dtype=float64"],
        ["--model.torch_dtype_str=float64"],
        *(["--peft.lora_init_weights=" + name] for name in ("PISSA", "OLORA", "LOFTQ")),
    ],
    ids="".join,
)
def test_what_it_says_is_refused_is_found_without_a_model(flags: list[str]) -> None:
    overrides, _ = split_overrides(flags)
    with pytest.raises(ConfigError, match=r"peft\.|model\."):
        load_text(SAMPLE, "train.yaml", overrides)
