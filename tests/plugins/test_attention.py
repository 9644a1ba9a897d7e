"""Names of attention implementations, as far as they are known without torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from oumi_kernel.cli import main
from oumi_kernel.config.vocabulary import ATTENTION
from oumi_kernel.plugins.attention import attention_problem
from tests.conftest import minimal_yaml


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize("name", [None, "sdpa", "eager", "flex_attention"])
@pytest.mark.usefixtures("nothing_installed")
def test_what_needs_no_package_is_fine(name: str | None) -> None:
    assert attention_problem(name, others=False) is None


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("flash_attention_2", "pip install 'flash-attn', or 'kernels' to take it from the hub"),
        ("flash_attention_3", "pip install 'flash-attn-3', or 'kernels' to take it from the hub"),
        ("kernels-community/flash-attn2", "pip install 'kernels'"),
        ("kernels-community/flash-attn2@main:varlen", "pip install 'kernels'"),
    ],
)
@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_package_is_named_with_its_command(name: str, hint: str) -> None:
    found = attention_problem(name, others=False)
    assert found is not None
    assert (found.code, found.hint) == ("missing-extra", hint)


def test_kernels_of_the_hub_stand_in_for_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "kernels" else None)
    assert attention_problem("flash_attention_2", others=False) is None


def test_an_unknown_name_is_an_error_with_the_nearest_ones_unless_a_plugin_may_know_it() -> None:
    found = attention_problem("flash_atention_2", others=False)
    assert found is not None
    assert found.code == "unknown-name"
    assert "did you mean 'flash_attention_2'" in found.hint
    assert attention_problem("flash_atention_2", others=True) is None


def test_the_names_are_those_of_transformers() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    ours = {"oumi_rows", "oumi_alone", "leaking"}  # what other tests of this process registered
    registered = {name for name in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys() if not name.startswith("quick")}
    assert registered - ours == set(ATTENTION)


def test_validation_tells_a_wrong_name_from_a_missing_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "kernels" else find(name, *rest)
    )
    config = tmp_path / "train.yaml"
    config.write_text(minimal_yaml(model="  attn_implementation: sdpaa\n"))
    assert main(["config", "validate", str(config)]) == 2
    assert "train.yaml:3:" in (said := "".join(capsys.readouterr()))
    assert "no attention implementation is named 'sdpaa'" in said
    config.write_text(minimal_yaml(model="  attn_implementation: someone/kernel\n"))
    assert main(["config", "validate", str(config)]) == 0
    assert "needs kernels, which is not installed" in "".join(capsys.readouterr())
