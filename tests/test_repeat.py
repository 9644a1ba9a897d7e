"""`oumi run run.json`: the same bytes again, and what is not as it was is said."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from oumi_kernel import ConfigError, PluginError
from oumi_kernel.cli.config_validate import validate
from oumi_kernel.cli.configuration import open_sound_config
from oumi_kernel.cli.run import run as command
from oumi_kernel.loading import split_overrides, to_yaml
from oumi_kernel.manifest import fingerprint
from oumi_kernel.plugins import resolve
from oumi_kernel.run import run_training
from tests.conftest import QUICKSTART


def dataset(**keys: Any) -> dict[str, Any]:
    return {"dataset_name": "text_sft", "dataset_path": "./rows.jsonl"} | keys


def configuration(folder: Path, *datasets: dict[str, Any], **training: Any) -> Path:
    """Write a configuration and its rows into a folder of their own; paths in it are relative to that folder."""
    (folder / "model").symlink_to(QUICKSTART / "model")
    lines = (QUICKSTART / "data/train.jsonl").read_text().splitlines()[:20]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "save_steps": 0, "enable_tensorboard": False}
    config = {
        "model": {"model_name": "./model"},
        "data": {"train": {"datasets": list(datasets) or [dataset()]}},
        "training": settings | {"learning_rate": 0.01, "optimizer": "sgd", "output_dir": "first"} | training,
    }
    (folder / "train.yaml").write_text(to_yaml(config))
    return folder / "train.yaml"


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for a configuration that is not the current folder."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "beside"


def train(config: Path, output: str, *flags: str, plugin: tuple[str, ...] = ()) -> Path:
    """Run a configuration or a record into a folder of the current one."""
    overrides, rest = split_overrides([f"--training.output_dir={output}", *flags])
    assert not rest
    loaded, catalogue = open_sound_config(str(config), overrides, plugin)
    run_training(loaded, resolve(loaded, catalogue))
    return Path(output)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def edit(record: Path, **changes: Any) -> None:
    record.write_text(json.dumps(json.loads(record.read_text()) | changes))


def warnings_of(record: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert validate(str(record), overrides=()) == 0
    return capsys.readouterr().out


MIXTURE = (
    dataset(shuffle=True, mixture_proportion=0.5),
    dataset(dataset_path=str(QUICKSTART / "data/validation.jsonl"), mixture_proportion=0.5, sample_count=9),
)


@pytest.mark.parametrize("datasets", [(dataset(shuffle=True, sample_count=11),), MIXTURE], ids=["shuffle", "mixture"])
def test_a_repeat_has_the_same_bytes_also_where_seeds_were_null(beside: Path, datasets: tuple[Any, ...]) -> None:
    first = train(configuration(beside, *datasets), "first")
    assert weights(train(first / "run.json", "second")) == weights(first)
    assert weights(train(beside / "train.yaml", "third")) != weights(first)  # null: another order each time


def test_the_repeat_of_a_repeat_is_recorded_as_the_first_run_was(beside: Path) -> None:
    first = train(configuration(beside, *MIXTURE), "first")
    second = train(first / "run.json", "second", "--training.output_dir=second")
    records = [json.loads((folder / "run.json").read_text()) for folder in (first, second)]
    records[1]["config"]["training"]["output_dir"] = "first"
    assert records[0] == records[1]
    assert set(records[0]["seeds"]) == {
        "training.seed",
        "training.data_seed",
        "data.train.seed",
        "data.train.datasets[0].seed",
    }


@pytest.mark.parametrize("key", ["training.seed", "training.data_seed", "data.train.datasets[0].seed"])
def test_another_seed_gives_other_bytes(beside: Path, key: str) -> None:
    first = train(configuration(beside, dataset(shuffle=True)), "first", "--model.load_pretrained_weights=false")
    assert weights(train(first / "run.json", "same")) == weights(first)
    assert weights(train(first / "run.json", "other", f"--{key}=1234")) != weights(first)


def test_a_run_that_goes_on_keeps_the_order_that_its_first_part_drew(beside: Path) -> None:
    config = configuration(beside, dataset(shuffle=True), save_steps=2, lr_scheduler_type="constant")
    train(config, "stopped", "--training.max_steps=2")
    straight = train(Path("stopped/run.json"), "straight", "--training.max_steps=3")
    resumed = train(config, "stopped", "--training.try_resume_from_last_checkpoint")
    named = train(config, "named", "--training.resume_from_checkpoint=stopped/checkpoint-2")
    assert weights(resumed) == weights(straight)
    assert weights(named) == weights(straight)


def test_relative_paths_are_read_where_the_configuration_was(beside: Path, tmp_path: Path) -> None:
    first = train(configuration(beside), "first")
    moved = tmp_path / "elsewhere" / "any_name.json"
    moved.parent.mkdir()
    moved.write_bytes((first / "run.json").read_bytes())
    assert weights(train(moved, "second")) == weights(first)


def test_where_the_configuration_was_moved_too_its_paths_are_read_beside_the_record(
    beside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(configuration(beside), "first")
    moved = beside.rename(tmp_path / "moved")
    (moved / "run.json").write_bytes((first / "run.json").read_bytes())
    assert weights(train(moved / "run.json", "second")) == weights(first)
    said = warnings_of(moved / "run.json", capsys)
    assert f"the folder {beside}, beside which the run read ./name, is not here" in said
    assert f"looked for in {moved}, then in the current folder" in said


def test_a_folder_that_no_name_is_read_beside_may_be_gone(beside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = train(configuration(beside), "first") / "run.json"
    tree = json.loads(record.read_text().replace('"./', f'"{beside}/'))
    record.write_text(json.dumps(tree | {"folder": "/nowhere"}))
    assert warnings_of(record, capsys) == f"{record}: valid\n"


def test_a_repeat_does_not_overwrite_the_run_unless_it_is_told_to(beside: Path) -> None:
    first = train(configuration(beside), "first")
    before = (first / "run.json").stat().st_mtime_ns
    with pytest.raises(ConfigError, match=r"'first' holds a run already.*--training.output_dir first_repeat") as found:
        command("first/run.json", overrides=())
    assert found.value.problems[0].place.source == "first/run.json"
    assert (first / "run.json").stat().st_mtime_ns == before
    overrides, _ = split_overrides(["--training.output_dir=first"])
    command("first/run.json", overrides=overrides)
    assert (first / "run.json").stat().st_mtime_ns > before


def test_a_record_whose_output_is_elsewhere_runs_as_it_is(beside: Path, tmp_path: Path, monkeypatch) -> None:
    first = train(configuration(beside), "first").absolute()
    (tmp_path / "third").mkdir()
    monkeypatch.chdir(tmp_path / "third")
    command(str(first / "run.json"), overrides=())
    assert weights(Path("first")) == weights(first)


def test_other_versions_are_warned_about_with_both(beside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = train(configuration(beside), "first") / "run.json"
    assert warnings_of(record, capsys) == f"{record}: valid\n"
    tree = json.loads(record.read_text())
    components = [c | {"version": "0.0.9"} for c in tree["components"]]
    machine = tree["machine"] | {"OMP_NUM_THREADS": "64"}
    edit(record, python="3.10.1", libraries={"torch": "2.0.0", "gone": "1.0"}, components=components, machine=machine)
    text = warnings_of(record, capsys)
    for expected in (
        r"python: 3\.10\.1 when the run was recorded, 3\.\d+\.\d+ now",
        r"torch: 2\.0\.0 when the run was recorded, \d\S* now",
        r"gone: 1\.0 when the run was recorded, not installed now",
        r"oumi-kernel: 0\.0\.9 when the run was recorded, 0\.1\.0 now",
        r"OMP_NUM_THREADS: 64 when the run was recorded, \S+ now",
    ):
        assert len(re.findall(expected, text)) == 1, text


def test_other_data_is_said_whatever_the_log_level(beside: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = train(configuration(beside), "first", "--training.log_level=critical")
    rows = (beside / "rows.jsonl").read_text().splitlines()
    (beside / "rows.jsonl").write_text("\n".join(rows[:-1]))
    train(first / "run.json", "second")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(said) == 2  # before training and after it, when its lines have scrolled away
    then, now = (json.loads((Path(name) / "run.json").read_text()) for name in ("first", "second"))
    assert "OTHER DATA THAN IN THE RECORDED RUN" in said[0]
    assert f"{then['fingerprints']['train'][:16]} then, {now['fingerprints']['train'][:16]} now" in said[0]
    assert "data.train: 20 rows then, 19 now" in said[0]


def test_the_same_data_is_not_said(beside: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(train(configuration(beside), "first") / "run.json", "second")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_other_weights_under_the_same_name_are_said(beside: Path, caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.torch import load_file, save_file

    config = configuration(beside)
    (beside / "model").unlink()
    shutil.copytree(QUICKSTART / "model", beside / "model")
    first = train(config, "first")
    train(first / "run.json", "same")
    assert not [record for record in caplog.records if record.levelno == logging.CRITICAL]
    tensors = load_file(beside / "model/model.safetensors")
    tensors["model.norm.weight"][3] += 0.001
    save_file(tensors, beside / "model/model.safetensors", {"format": "pt"})
    train(first / "run.json", "other")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    then, now = (json.loads((Path(name) / "run.json").read_text())["weights"] for name in ("first", "other"))
    assert len(said) == 2
    assert "OTHER WEIGHTS THAN IN THE RECORDED RUN" in said[0]
    assert f"model.safetensors: {then['model.safetensors'][:16]} then, {now['model.safetensors'][:16]} now" in said[0]
    assert then["config.json"] == now["config.json"]


METRIC = "def constant(predictions, labels) -> float:\n    return 1.0\n"


def test_a_component_from_a_local_file_takes_part_again(beside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (beside / "mine.py").write_text(METRIC)
    plugin = (f"{beside}/mine.py:constant",)
    first = train(configuration(beside), "first", "--training.metrics_function=constant", plugin=plugin)
    record = first / "run.json"
    assert weights(train(record, "second")) == weights(first)
    assert warnings_of(record, capsys) == f"{record}: valid\n"
    (beside / "mine.py").write_text(METRIC + "# changed\n")
    assert f"the file {plugin[0]}: sha256 " in warnings_of(record, capsys)
    (beside / "other.py").write_text(METRIC)
    train(record, "third", plugin=(f"{beside}/other.py:constant",))  # given now, so it replaces the recorded one
    (beside / "mine.py").unlink()
    with pytest.raises(PluginError, match=r"metric 'constant'.*cannot be imported: FileNotFoundError: no file .*mine"):
        train(record, "fourth")


def test_a_variable_stays_a_name_and_is_read_again(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_RATE", "0.02")
    first = train(configuration(beside, learning_rate="${env:MY_RATE}"), "first")
    assert json.loads((first / "run.json").read_text())["config"]["training"]["learning_rate"] == "${env:MY_RATE}"
    monkeypatch.setenv("MY_RATE", "0.03")
    assert weights(train(first / "run.json", "second")) != weights(first)


def test_a_section_that_nobody_wrote_does_not_turn_the_adapter_on(beside: Path) -> None:
    first = train(configuration(beside), "first")
    loaded, _ = open_sound_config(str(first / "run.json"), ())
    assert not loaded.document.given("peft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has the format 2; this oumi-kernel reads format 1"),
        ({"seeds": {"training.seed": "many"}}, r"this record of a run is damaged: .*seeds"),
        ({"config": {"model": {"model_name": "./model", "modl": 1}}}, r"run\.json:1:\d+: model\.modl: unknown key"),
    ],
)
def test_a_record_that_cannot_be_read_says_so(beside: Path, changes: dict[str, Any], message: str) -> None:
    record = train(configuration(beside), "first") / "run.json"
    edit(record, **changes)
    with pytest.raises(ConfigError, match=message):
        open_sound_config(str(record), ())


def test_a_fingerprint_follows_from_examples_and_their_order() -> None:
    class Known(list[Any]):
        content = "abc"

    examples = [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3], "labels": [3]}]
    assert fingerprint(examples) == fingerprint([dict(reversed(example.items())) for example in examples])
    others = [examples[::-1], examples[:1], [examples[0], {"input_ids": [3], "labels": [4]}]]
    assert all(fingerprint(other) != fingerprint(examples) for other in others)
    assert fingerprint(Known(examples)) == "abc"
    assert fingerprint([object()]) is None
