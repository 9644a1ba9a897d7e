"""Every shipped recipe loads, resolves without an error, and satisfies the published schema."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from oumi_kernel.loading import load_config
from oumi_kernel.loading.yaml_reader import read_yaml
from oumi_kernel.plugins import Catalogue, resolve, scan
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
NAMED = [
    "smollm/sft/135m/quickstart_train.yaml",
    "llama3_1/sft/8b_full/train.yaml",
    "llama3_1/sft/8b_qlora/train.yaml",
    "llama3_1/sft/70b_lora/train.yaml",
    "vision/llava_7b/sft/train.yaml",
]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return scan()


@pytest.fixture(scope="module")
def schema() -> Any:
    command = [sys.executable, "-m", "oumi_kernel", "config", "schema"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return jsonschema.Draft202012Validator(json.loads(text))


def test_there_are_at_least_twenty_and_those_that_the_specification_names() -> None:
    assert len(RECIPES) >= 20
    assert all((ROOT / "configs/recipes" / name).is_file() for name in NAMED)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_a_recipe_loads_and_names_nothing_wrong(path: Path, catalogue: Catalogue) -> None:
    resolution = resolve(load_config(path), catalogue)
    assert resolution.problems == ()
    assert all(problem.code in ("not-installed", "not-served", "missing-extra") for problem in resolution.unavailable)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_a_recipe_satisfies_the_schema(path: Path, schema: Any) -> None:
    assert [error.message for error in schema.iter_errors(read_yaml(path.read_text(), str(path)).value)] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_a_recipe_says_what_it_trains_and_how_to_run_it(path: Path) -> None:
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"oumi run {path.relative_to(ROOT)}" in header
    assert "Hardware" in header


def test_the_readme_of_the_recipes_lists_every_one_and_no_other() -> None:
    lines = (ROOT / "configs/recipes/README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    cells = [(row[0].strip("`"), cell) for row in rows for cell in row[1:]]
    listed = {f"{family}/{name}" for family, cell in cells for name in re.findall(r"`(.+?)`", cell)}
    recipes = {str(path.parent.relative_to(ROOT / "configs/recipes")) for path in RECIPES if "recipes" in path.parts}
    assert listed == {name for name in recipes if "/sft/" in name and not name.startswith("vision")}
