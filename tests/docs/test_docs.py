"""What the documents show is true: samples load, outputs are real, quoted code is the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from oumi_kernel.cli.commands import COMMANDS
from oumi_kernel.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericsError,
    OutOfMemoryError,
    PluginError,
    StopRequested,
)
from oumi_kernel.loading import load_text
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs/guides/plugins.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_readmes_configuration_loads() -> None:
    (sample,) = blocks(README, "yaml")
    assert load_text(sample, "train.yaml").config.data.train.datasets[0].dataset_name == "yahma/alpaca-cleaned"


def test_the_errors_that_the_readme_shows_are_those_of_the_program(tmp_path: Path) -> None:
    (sample,) = blocks(README, "yaml")
    lines = sample.splitlines()
    (tmp_path / "train.yaml").write_text("\n".join([*lines[:11], "  learnig_rate: 1e-4", "  lora_r: 8"]) + "\n")
    (shown,) = blocks(README, "text")
    command, _, expected = shown.partition("\n")
    arguments = command.removeprefix("$ oumi ").split()
    done = subprocess.run(
        [sys.executable, "-m", "oumi_kernel", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout == expected
    assert done.returncode == 2


def test_the_readmes_two_commands_are_one_line_each() -> None:
    commands = [block for block in blocks(README, "bash") if block.startswith("python3 -m venv")]
    assert [command.count("\n") for command in commands] == [1, 1]
    assert "oumi run configs/quickstart/train.yaml" in commands[0]
    assert "-m pytest " in commands[1]


def test_every_command_is_in_the_readme() -> None:
    for command in COMMANDS:
        *group, name = command.words
        assert re.search(rf"oumi {' '.join(group)} ?[\w|\\]*\b{name}\b", README), command.words


@pytest.mark.parametrize(
    "error", [ConfigError, NumericsError, DataError, OutOfMemoryError, CheckpointError, PluginError, StopRequested]
)
def test_every_exit_code_is_in_the_readme(error: type) -> None:
    assert f"| {error.exit_code} |" in README


def test_the_guides_code_is_the_code_of_contrib() -> None:
    quoted = re.findall(r"\]\(\.\./\.\./(contrib/[^)]+)\):\n\n```\w+\n(.*?)```", GUIDE, re.DOTALL)
    assert len(quoted) == 4
    for path, code in quoted:
        assert code.strip() in (ROOT / path).read_text(), path


def test_no_document_points_to_a_file_that_is_not_there() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for document in documents:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_decisions_are_short() -> None:
    for path in (ROOT / "docs/decisions").glob("*.md"):
        assert len(path.read_text().splitlines()) <= 40, path
