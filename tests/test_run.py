"""One run from the outside: what it leaves, how it fails, what it keeps to itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oumi_kernel import ConfigError, DataError
from oumi_kernel.contracts import Run, World
from oumi_kernel.launch import world_from
from oumi_kernel.loading import load_config, load_text, split_overrides
from oumi_kernel.plugins import resolve, scan
from oumi_kernel.run import run_training
from oumi_kernel.shipped import find_config
from tests.conftest import QUICKSTART, ROOT, minimal_yaml


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "oumi_kernel", "run", str(QUICKSTART / "train.yaml"), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "output/quickstart").mkdir(parents=True)
    (folder / "output/quickstart/failure.json").write_text("{}")  # an earlier run's
    os.environ["MY_RUN"] = "secret-name"
    process = start(
        "--training.num_train_epochs=1",
        "--training.run_name=${env:MY_RUN}",
        "--training.metrics_function=token_accuracy",
        folder=folder,
    )
    _, errors = process.communicate()
    del os.environ["MY_RUN"]
    assert process.returncode == 0, errors
    assert "eval_loss" in errors
    assert "Training is done" in errors
    return folder / "output/quickstart"


def test_a_run_leaves_model_record_metrics_and_logs(finished: Path) -> None:
    left = {path.name for path in finished.iterdir()}
    assert left >= {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "run.json"}
    assert left >= {"metrics.jsonl", "tensorboard", "logs"}
    assert "failure.json" not in left
    assert "eval_loss" in (finished / "logs/rank_0.log").read_text()
    assert list((finished / "tensorboard/secret-name").glob("events.out.tfevents.*"))


def test_the_loss_falls_and_the_metrics_say_so(finished: Path) -> None:
    entries = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if entry.get("loss")]
    assert losses[-1] < losses[0] - 0.5
    assert 0 < entries[-1]["eval_token_accuracy"] < 1


def test_the_record_holds_configuration_components_and_versions_but_no_secret(finished: Path) -> None:
    text = (finished / "run.json").read_text()
    record = json.loads(text)
    assert record["config"]["training"]["run_name"] == "${env:MY_RUN}"
    assert "secret-name" not in text
    assert record["config"]["training"]["learning_rate"] == 0.005
    assert {component["family"] for component in record["components"]} >= {"trainers", "datasets", "optimizers"}
    assert record["libraries"]["torch"]
    assert record["rows"] == {"train": 453, "validation": 50}


def test_the_model_opens_with_plain_transformers_and_the_template_it_was_trained_with(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(finished), AutoTokenizer.from_pretrained(finished)
    original = AutoTokenizer.from_pretrained(QUICKSTART / "model")
    chat = [{"role": "user", "content": "Do I need a permit?"}, {"role": "assistant", "content": "Yes."}]
    assert model.num_parameters() == 158016
    rendered = [t.apply_chat_template(chat, tokenize=True, return_dict=False) for t in (tokenizer, original)]
    assert rendered[0] == rendered[1]


def test_sigterm_ends_with_143_and_a_complete_checkpoint(tmp_path: Path) -> None:
    process = start("--training.num_train_epochs=200", "--training.logging_steps=1", folder=tmp_path)
    metrics = tmp_path / "output/quickstart/metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    (checkpoint,) = (tmp_path / "output/quickstart").glob("checkpoint-*")
    assert (checkpoint / "manifest.json").exists()
    assert "Traceback" not in errors


def test_an_output_folder_that_cannot_be_written_is_exit_6_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file")
    process = start(folder=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 6
    assert "training.output_dir: cannot write into output/quickstart" in errors


def test_the_newest_failure_is_recorded(tmp_path: Path) -> None:
    process = start("--model.model_name=./nowhere", folder=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "error[no-model] model.model_name: " in errors
    assert "     | --model.model_name=./nowhere" in errors
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "output/quickstart/failure.json").read_text())["exit_code"] == 2


def test_a_launchers_variables_say_which_process_this_is() -> None:
    assert world_from({}) == World()
    assert world_from({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}) == World(rank=3, local_rank=1, size=4)
    assert not world_from({"RANK": "3", "WORLD_SIZE": "4"}).is_main
    with pytest.raises(ConfigError, match="must be whole numbers"):
        world_from({"RANK": "first", "WORLD_SIZE": "2"})


def test_a_path_with_a_dot_is_read_beside_the_configuration_first(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_text(minimal_yaml(), "c").config
    run = Run(config=config, folder=QUICKSTART)
    assert run.locate("./data/train.jsonl") == str(QUICKSTART / "data/train.jsonl")
    assert run.locate("org/name") == "org/name"
    (tmp_path / "here.jsonl").touch()
    assert run.locate("./here.jsonl") == str(tmp_path / "here.jsonl")
    assert run.locate("./nowhere") == str(QUICKSTART / "nowhere")  # never a hub id
    assert run.locate("~/x") == str(Path.home() / "x")


@pytest.mark.parametrize("name", ["quickstart", "configs/quickstart/train.yaml", "llama3_1/sft/8b_lora"])
def test_a_shipped_configuration_is_found_by_name_from_anywhere(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name).is_relative_to(ROOT / "configs")


def test_a_configuration_that_is_nowhere_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"there is no file 'llama3_1/sft/8b_loar'.*did you mean|Give the path"):
        find_config("llama3_1/sft/8b_loar")


@pytest.mark.parametrize(
    ("flags", "place"),
    [
        ((), r"train.yaml:{line}:\d+: data.train.datasets\[0\].dataset_path: "),
        (("--data.train.datasets[0].dataset_path=o.jsonl",), r"command line: data.train.datasets\[0\].dataset_path: "),
    ],
)
def test_data_that_is_not_there_is_named_with_the_place_of_its_key(
    tmp_path: Path, flags: tuple[str, ...], place: str
) -> None:
    text = (QUICKSTART / "train.yaml").read_text().replace("./data/train.jsonl", "./data/trian.jsonl")
    (tmp_path / "train.yaml").write_text(text.replace("./model", str(QUICKSTART / "model")))
    line = 1 + text[: text.index("./data/trian.jsonl")].count("\n")
    overrides, _ = split_overrides([f"--training.output_dir={tmp_path / 'out'}", *flags])
    loaded = load_config(tmp_path / "train.yaml", overrides)
    with pytest.raises(DataError, match=place.format(line=line) + "there is no file"):
        run_training(loaded, resolve(loaded, scan()))
    assert json.loads((tmp_path / "out/failure.json").read_text())["exit_code"] == 4
