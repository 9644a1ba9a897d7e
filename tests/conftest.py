"""What every test may use: the tiny model, a minimal configuration, plugins installed as metadata on the path."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
os.environ["OUMI_CACHE_DIR"] = tempfile.mkdtemp(prefix="oumi-tests-")  # nor write into the caches of who runs it
os.environ["HF_DATASETS_CACHE"] = os.environ["OUMI_CACHE_DIR"]

import pytest

atexit.register(shutil.rmtree, os.environ["OUMI_CACHE_DIR"], ignore_errors=True)

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "configs" / "quickstart"

Install = Callable[..., Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the tests that repeat for every member of a large set what others show for one of a kind."""
    parser.addoption("--exhaustive", action="store_true", help="run the tests marked exhaustive too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what was not asked for, and what needs a GPU where there is none, and say so."""
    if not config.getoption("exhaustive"):
        for item in items:
            if item.get_closest_marker("exhaustive"):
                item.add_marker(pytest.mark.skip(reason="one of a kind was tried; --exhaustive tries all"))
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and torch sees none"))


def few_of(names: Iterable[str], few: Container[str]) -> list[Any]:
    """Return names to parametrise a test with; those that are not among `few` are tried with `--exhaustive`."""
    return [name if name in few else pytest.param(name, marks=pytest.mark.exhaustive) for name in names]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return `install(distribution, version, entry_points, **modules)`: a distribution as pip would leave it."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def make(distribution: str, version: str, entry_points: dict[str, dict[str, str]], **modules: str) -> Path:
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        text = "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in entry_points.items()
        )
        (info / "entry_points.txt").write_text(text)
        for name, source in modules.items():
            (site / f"{name}.py").write_text(source)
            monkeypatch.delitem(sys.modules, name, raising=False)
        return site

    return make


def minimal_yaml(**sections: str) -> str:
    """Return a small valid configuration, with further YAML lines under the named sections."""
    base = {
        "model": "  model_name: ./model\n",
        "data": "  train:\n    datasets:\n      - dataset_name: text_sft\n",
    }
    merged = {key: base.get(key, "") + sections.get(key, "") for key in dict.fromkeys((*base, *sections))}
    return "".join(f"{key}:\n{text}" for key, text in merged.items())
