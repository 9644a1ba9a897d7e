"""The rules of the house, as tests: who may know whom, and how large anything may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oumi_kernel.plugins import scan
from tests.conftest import ROOT

KERNEL = sorted((ROOT / "oumi_kernel").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "bitsandbytes",
    "liger_kernel",
    "numpy",
}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_the_kernel_imports_no_training_library_and_no_plugin() -> None:
    for path in KERNEL:
        heavy = {name.partition(".")[0] for name in imports(parsed(path))} & (HEAVY | {"oumi_plugins"})
        assert not heavy, f"{path}: {heavy}"


def test_the_kernel_knows_no_component_by_name() -> None:
    """Names of built-in components are strings of the YAML language (config/) or of metadata, never of code."""
    ours = {entry.name for entry in scan().entries if entry.distribution == "oumi-kernel"}
    named = ours - {"default", "distributed", "oumi"}  # words of the catalogue, and the name of the program
    libraries = ROOT / "oumi_kernel/cli/env.py"  # names libraries, one of which is called like its tracker
    for path in KERNEL:
        if path.is_relative_to(ROOT / "oumi_kernel/config") or path == libraries:
            continue
        tree = parsed(path)
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                assert node.value not in named, f"{path}:{node.lineno} names the component '{node.value}'"


def test_a_family_does_not_import_another_familys_private_files() -> None:
    for path in PLUGINS:
        family = path.relative_to(ROOT / "plugins/oumi_plugins").parts[0]
        for name in imports(parsed(path)):
            parts = name.split(".")
            if parts[0] == "oumi_plugins" and len(parts) > 2 and parts[2].startswith("_"):
                assert parts[1] == family, f"{path} imports {name}"


def test_every_public_plugin_file_is_light() -> None:
    code = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    modules = [
        ".".join(path.relative_to(ROOT / "plugins").with_suffix("").parts)
        for path in PLUGINS
        if not path.name.startswith("_")
    ]
    assert len(modules) > 20
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_entry_point_of_ours_can_be_loaded_and_is_of_its_family() -> None:
    catalogue = scan()
    own = [entry for entry in catalogue.entries if entry.distribution == "oumi-kernel"]
    assert len(own) > 30
    for entry in own:
        assert entry.state == "ready", entry
        assert catalogue.load(entry).__doc__, entry.value


@pytest.mark.parametrize("path", KERNEL + PLUGINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_holds_at_most_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "base", "misc"])
def test_no_file_is_named_after_nothing(name: str) -> None:
    assert not [path for path in KERNEL + PLUGINS if path.stem.strip("_") == name]


def test_nothing_is_unpickled() -> None:
    for path in KERNEL + PLUGINS:
        text = path.read_text()
        assert "torch.load" not in text, path
        assert not {"pickle", "dill", "marshal"} & set(imports(parsed(path))), path


def test_every_training_key_is_used_or_refused_somewhere() -> None:
    """No key is ever ignored: each occurs in code outside the configuration, or in a component's tables."""
    from oumi_kernel.config import DatasetParams, DatasetSplitParams, ModelParams, TrainingParams

    code = "\n".join(path.read_text() for path in KERNEL + PLUGINS if "config" not in path.relative_to(ROOT).parts[:2])
    derived = (ROOT / "oumi_kernel/config/derived.py").read_text() + (ROOT / "oumi_kernel/config/rules.py").read_text()
    switches = {f"enable_{name}" for name in ("wandb", "mlflow", "tensorboard", "liger_kernel")}  # derived from the key
    for struct in (TrainingParams, ModelParams, DatasetSplitParams, DatasetParams):
        for name in struct.__struct_fields__:
            known = f".{name}" in code or f".{name}" in derived or f'"{name}"' in code
            assert known or name in switches, f"{struct.__name__}.{name} is used nowhere"
