"""Installed from the wheel, away from the checkout, everything works the same; and so do strangers' packages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def test_the_wheel_carries_kernel_plugins_and_configurations(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "oumi_kernel/py.typed" in names
    assert "oumi_plugins/models/chat_templates/chat_ml.jinja" in names
    assert any(name.endswith("share/oumi-kernel/configs/quickstart/model/model.safetensors") for name in names)
    assert not any(name.startswith("tests/") for name in names)


def test_the_quickstart_runs_away_from_the_checkout(installed, tmp_path: Path) -> None:
    done = installed.oumi("run", "quickstart", "--training.max_steps", "12", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line) for line in (tmp_path / "output/quickstart/metrics.jsonl").read_text().splitlines()]
    assert "eval_loss" in losses[-1]
    code = "from transformers import AutoModelForCausalLM as A\n"
    code += "print(A.from_pretrained('output/quickstart').num_parameters())"
    opened = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert opened.stdout.strip() == "158016"


def test_commands_work_away_from_the_checkout(installed, tmp_path: Path) -> None:
    assert installed.oumi("config", "validate", "quickstart", folder=tmp_path).returncode == 0
    assert "text_sft" in installed.oumi("plugins", "list", folder=tmp_path).stdout
    assert installed.oumi("config", "explain", "training.seed", folder=tmp_path).returncode == 0


def test_strangers_packages_are_installed_by_pip_and_used_by_a_run(installed, tmp_path: Path) -> None:
    for name in ("oumi-glossary", "oumi-lion"):
        shutil.copytree(ROOT / "contrib" / name, tmp_path / name)
        installed.install(tmp_path / name)
    (tmp_path / "terms.txt").write_text("".join(f"term {n}: the meaning of the term number {n}\n" for n in range(16)))
    (tmp_path / "train.yaml").write_text(
        f"""
model:
  model_name: {ROOT}/configs/quickstart/model
data:
  train: &split
    collator_name: text_completions_only_with_padding
    datasets:
      - dataset_name: glossary
        dataset_path: ./terms.txt
        dataset_kwargs:
          question: "What does {{term}} mean?"
  validation: *split
training:
  output_dir: out
  max_steps: 4
  optimizer: lion
  learning_rate: 1e-3
  optimizer_kwargs:
    beta2: 0.98
  metrics_function: rare_token_accuracy
  metrics_kwargs:
    above: 300
"""
    )
    done = installed.oumi("run", "train.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()][-1]
    assert 0 <= figures["eval_rare_token_accuracy"] <= 1
    components = json.loads((tmp_path / "out/run.json").read_text())["components"]
    assert {(c["name"], c["distribution"], c["version"]) for c in components} >= {
        ("glossary", "oumi-glossary", "1.0.0"),
        ("rare_token_accuracy", "oumi-glossary", "1.0.0"),
        ("lion", "oumi-lion", "1.0.0"),
    }
    wrong = installed.oumi("run", "train.yaml", "--training.metrics_kwargs.abov=3", folder=tmp_path)
    assert wrong.returncode == 2
    assert "unknown key 'abov'." in wrong.stderr
    assert "(from oumi-glossary 1.0.0)" in wrong.stderr


@pytest.mark.parametrize("name", ["oumi-glossary", "oumi-lion"])
def test_a_strangers_own_tests_pass(name: str) -> None:
    folder = ROOT / "contrib" / name
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += ["--rootdir", str(folder)]
    done = subprocess.run([*command, str(folder / "tests")], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
