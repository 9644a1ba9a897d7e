"""The configuration guide: its samples load and mean what the text says, its commands and spellings exist."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from oumi_kernel.config.derived import peft_enabled
from oumi_kernel.loading import LoadedConfig, load_text, to_yaml
from oumi_kernel.loading.aliases import ALIASES
from oumi_kernel.loading.yaml_reader import read_yaml
from tests.conftest import ROOT

GUIDE = (ROOT / "docs/guides/configuration.md").read_text()
SAMPLES = re.findall(r"^## ([^\n]+)$[^#]*?^```yaml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
MINIMAL = {"model": {"model_name": "m"}, "data": {"train": {"datasets": [{"dataset_name": "text_sft"}]}}}


def loaded(section: str) -> LoadedConfig:
    return load_text(to_yaml(MINIMAL | read_yaml(dict(SAMPLES)[section], section).value), section)


@pytest.mark.parametrize("section", [section for section, _ in SAMPLES])
def test_a_sample_loads_without_a_warning(section: str) -> None:
    assert loaded(section).warnings == ()


def test_every_sample_is_tested() -> None:
    assert GUIDE.count("```yaml") == len(dict(SAMPLES)) == 5


def test_the_data_sample_is_a_mixture() -> None:
    train = loaded("Data").config.data.train
    assert [dataset.mixture_proportion for dataset in train.datasets] == [0.7, 0.3]
    assert train.mixture_strategy == "all_exhausted"


def test_an_adapter_section_alone_turns_the_adapter_on() -> None:
    sample = loaded("Adapters")
    assert peft_enabled(sample.config, sample.document.given("peft"))
    without_switch = {**MINIMAL, "peft": read_yaml(dict(SAMPLES)["Adapters"], "x").value["peft"]}
    assert peft_enabled(load_text(to_yaml(without_switch), "x").config, True)
    whole = {**without_switch["peft"], "q_lora": False}  # quantised weights need an adapter
    off = load_text(to_yaml({**without_switch, "peft": whole, "training": {"use_peft": False}}), "x")
    assert not peft_enabled(off.config, True)


def test_values_from_elsewhere_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded("Values from elsewhere").config.model.model_name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    monkeypatch.setenv("MODEL", "other")
    sample = loaded("Values from elsewhere")
    assert sample.config.model.model_name == "other"
    assert sample.config.training.output_dir == "output/small"
    assert sample.document.environment["model.model_name"].startswith("${env:MODEL")


def test_other_spellings_are_all_there() -> None:
    section = GUIDE.split("## Other spellings")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    shown = set(re.findall(r"`([\w.]+)", " ".join(rows)))
    assert shown == {alias.old for alias in ALIASES if not alias.old.startswith("training.trainer_kwargs.")}


@pytest.mark.parametrize("command", re.findall(r"^oumi (config .*?)(?: +#.*)?$", GUIDE, re.MULTILINE))
def test_a_command_of_the_guide_works(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "oumi_kernel", *command.split()], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
