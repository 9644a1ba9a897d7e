"""What `oumi plugins show` says to write chooses the component, whatever its family."""

from __future__ import annotations

import re

import pytest

from oumi_kernel.cli.plugins_show import show
from oumi_kernel.loading import load_text, split_overrides
from oumi_kernel.plugins import FAMILIES, scan
from oumi_kernel.plugins.catalogue import Entry
from oumi_kernel.plugins.slots import slots
from tests.conftest import Install, minimal_yaml

OWN = [entry for entry in scan().entries if entry.distribution == "oumi-kernel"]
IN_WORDS = {"models": "model.model_name: a folder or a hub id", "plugins": "being installed: it is always on"}
"""Family -> what is said of components that no value of a key names."""


def chosen_by(entry: Entry, capsys: pytest.CaptureFixture[str]) -> str:
    show(f"{entry.family}:{entry.name}")
    found = re.search(r"^  chosen by     (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert found
    return found[1]


def chosen(written: str) -> set[tuple[str, str]]:
    """Return (family, name) of what a configuration with this in it names."""
    key, colon, value = written.partition(": ")
    flags = [f"--{key.replace('[]', '[0]')}={value}"] if colon else []
    config = load_text(minimal_yaml(), "test.yaml", split_overrides(flags)[0]).config
    world = 2 if "several processes" in written else 1
    named = {(slot.family, slot.name) for slot in slots(config, peft=True, world_size=world)}
    return named | {("collators", config.data.train.collator_name or "")}


@pytest.mark.parametrize("entry", OWN, ids=lambda entry: f"{entry.family}-{entry.name}")
def test_what_is_said_chooses_it(entry: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    written = chosen_by(entry, capsys)
    if entry.family in IN_WORDS:
        assert written == IN_WORDS[entry.family]
        return
    assert {(entry.family, name) for name in (entry.name, *entry.also)} & chosen(written)


def test_a_kernel_of_a_stranger_is_chosen_by_its_name(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    code = "from oumi_kernel import Component, Params\nclass P(Params):\n    a: int = 1\n\n"
    code += "class Quick(Component):\n    '''Quick.'''\n    params_type = P\n"
    install("oumi-quick", "1.0", {"oumi.kernels": {"quick": "quick_kernel:Quick"}}, quick_kernel=code)
    show("quick")
    text = capsys.readouterr().out
    assert "chosen by     model.kernels: {quick: {}}" in text
    assert "Parameters (model.kernels.quick):" in text
    assert ("kernels", "quick") in chosen("model.kernels: {quick: {}}")


def test_every_family_is_there() -> None:
    assert {entry.family for entry in OWN} == set(FAMILIES)
