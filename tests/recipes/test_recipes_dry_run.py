"""Every recipe passes a dry run as it stands, without weights and without a hub, and needs the memory that it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, few_of
from tests.recipes.architectures import ARCHITECTURES, config_of

pytestmark = pytest.mark.slow

ALL = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs/recipes").rglob("*.yaml"))
REFUSED = {
    "gpt2/pretraining/train.yaml": "there is no column 'text'",  # it is given conversations here
    "llama3_1/dpo/8b_lora/train.yaml": "needs a trainer named 'trl_dpo'",
    "zephyr/dpo/7b_qlora/train.yaml": "needs a trainer named 'trl_dpo'",
    "vision/llava_7b/sft/train.yaml": "vision_language",
}
"""Recipe -> what its dry run says is missing: components that are not there yet, or packages that are not installed."""
if find_spec("deepspeed") is None:
    REFUSED["llama3_1/sft/8b_full_zero3/train.yaml"] = "'deepspeed' needs deepspeed, which is not installed"
TRAINED = [name for name in ALL if name.removeprefix("configs/recipes/") not in REFUSED]


def representatives() -> set[str]:
    """Return the recipe with the smallest model of each type of model, and in several processes, of each method."""
    smallest: dict[tuple[str, bool, bool], tuple[int, str]] = {}
    for name in TRAINED:
        text = (ROOT / name).read_text()
        model = ARCHITECTURES[yaml.safe_load(text)["model"]["model_name"]]
        method = ("\npeft:" in text, "q_lora: true" in text)
        for of in (model.kind, *(["several"] if "--nproc" in text else [])):
            key, this = (of, *method), (model.parameters, name)
            smallest[key] = min(smallest.get(key, this), this)
    return {name for _, name in smallest.values()}


REPRESENTATIVES = representatives()
GIB = 2**30
MEMORY = re.compile(r"^# Memory: ([\d.]+) GiB on (?:one|each) device", re.MULTILINE)
GPU = re.compile(r"(?:one GPU|\d GPUs) with (\d+) GB")


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """Return recipe -> what its dry run says; several processes share the work."""
    count = min(4, os.cpu_count() or 1)
    wanted = [name for name in ALL if name not in TRAINED or name in REPRESENTATIVES]
    if request.config.getoption("exhaustive"):
        wanted = ALL
    command = [sys.executable, "-m", "tests.recipes.rehearse"]
    processes = [
        subprocess.Popen(
            [*command, *wanted[first::count]], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for first in range(count)
    ]
    found: dict[str, dict[str, Any]] = {}
    for process in processes:
        out, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
        found |= {record["recipe"]: record for record in map(json.loads, out.splitlines())}
    return found


@pytest.mark.parametrize("recipe", few_of(TRAINED, REPRESENTATIVES))
@pytest.mark.timeout(3600)
def test_a_recipe_passes_a_dry_run_and_needs_the_memory_that_it_says(
    recipe: str, verdicts: dict[str, dict[str, Any]]
) -> None:
    verdict = verdicts[recipe]
    assert "error" not in verdict, verdict
    text = (ROOT / recipe).read_text()
    said = MEMORY.search(text)
    assert said, "it says nothing"
    assert float(said[1]) == pytest.approx(verdict["peak"] / GIB, rel=0.03, abs=0.06)
    card = GPU.search(text)
    if card:
        assert verdict["peak"] / GIB < int(card[1])


@pytest.mark.parametrize(("recipe", "reason"), REFUSED.items(), ids=REFUSED)
@pytest.mark.timeout(3600)
def test_a_recipe_whose_component_is_not_there_says_so(
    recipe: str, reason: str, verdicts: dict[str, dict[str, Any]]
) -> None:
    verdict = verdicts[f"configs/recipes/{recipe}"]
    assert reason in verdict["error"]
    assert verdict["exit_code"] in (2, 4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_has_the_parameters_of_the_published_model(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == ARCHITECTURES[name].parameters
