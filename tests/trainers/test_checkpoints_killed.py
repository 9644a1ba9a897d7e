"""Killed while it saves, out of disk, beside another run: what is left is complete, and the run goes on from it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oumi_kernel.loading import LoadedConfig, load_text, to_yaml
from oumi_kernel.plugins import resolve, scan
from oumi_kernel.run import run_training
from tests.conftest import QUICKSTART, ROOT

STEPS = 40


@pytest.fixture(autouse=True)
def small_data(tmp_path: Path) -> None:
    lines = (QUICKSTART / "data/train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:24]))


def settings(folder: Path, **training: object) -> dict[str, object]:
    return {
        "model": {"model_name": str(QUICKSTART / "model")},
        "data": {"train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(folder / "train.jsonl")}]}},
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "optimizer": "adamw",
            "learning_rate": 0.001,
            "logging_strategy": "no",
            "save_steps": 1,
            "trainer_kwargs": {"save_total_limit": 2},
            "enable_tensorboard": False,
            "log_level": "error",
            "try_resume_from_last_checkpoint": True,
            **training,
        },
    }


def configuration(folder: Path, **training: object) -> LoadedConfig:
    return load_text(to_yaml(settings(folder, **training)), "test.yaml", [])


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own, which starts warm; return its id."""
    process = os.fork()
    if process == 0:
        try:
            os.setpgid(0, 0)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was
            os._exit(getattr(error, "exit_code", 1))
    return process


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def complete(folder: Path) -> list[int]:
    """Steps of the checkpoints in which every file is what the manifest says; read here, not by the product."""
    found = []
    for path in folder.glob("checkpoint-*/manifest.json"):
        files = json.loads(path.read_bytes())["files"]
        held = {name: hashlib.sha256((path.parent / name).read_bytes()).hexdigest() for name in files}
        if all(held[name] == digest for name, (_, digest, *_) in files.items()):
            found.append(int(path.parent.name.rpartition("-")[2]))
    return sorted(found)


def states(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": tensor
        for name in ("model", "optimizer", "random_state")
        for key, tensor in load_file(folder / f"{name}.safetensors").items()
    }


def start_of(folder: Path) -> int:
    """Return the step from which a killed run had gone on, as the last run in this folder told its tracker."""
    return int((folder / "started").read_text())


TRACKER = """
from pathlib import Path
from oumi_kernel import Component, hookimpl

class Started(Component):
    '''Writes down where a run begins.'''
    @hookimpl
    def oumi_train_start(self, run, plan, step):
        (Path(run.config.training.output_dir) / "started").write_text(str(step))
"""


@pytest.mark.slow
def test_killed_at_twenty_moments_of_a_save_it_goes_on_from_the_newest_complete_checkpoint(
    tmp_path: Path, install
) -> None:
    install("oumi-started", "1.0", {"oumi.plugins": {"started": "started:Started"}}, started=TRACKER)
    folder = tmp_path / "run"
    straight = configuration(tmp_path, output_dir=str(tmp_path / "straight"))
    began = time.monotonic()
    assert ended(forked(lambda: run_training(straight, resolve(straight, scan())))) == 0
    whole = time.monotonic() - began
    chance, seen = random.Random(5), set()
    for moment in range(20):
        kwargs = {"save_total_limit": 2, "async_save": bool(moment % 2)}
        loaded = configuration(tmp_path, trainer_kwargs=kwargs)
        before = complete(folder)
        (folder / "started").unlink(missing_ok=True)
        process = forked(lambda loaded=loaded: run_training(loaded, resolve(loaded, scan())))
        writing = folder / f".tmp-checkpoint-{max(before, default=0) + 1}"
        deadline = time.monotonic() + 60
        while not ((folder / "started").exists() and writing.exists()) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(chance.random() * whole / STEPS)
        os.kill(process, signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
        assert start_of(folder) == max(before, default=0)
        after = complete(folder)
        assert set(before[-1:]) <= {*after, *range(max(after, default=0))}
        assert max(after, default=0) >= max(before, default=0)
        seen |= {path.name for path in folder.glob(".*-checkpoint-*")}
    assert len(complete(folder)) == 2
    assert seen  # some were killed within a save
    loaded = configuration(tmp_path)
    assert ended(forked(lambda: run_training(loaded, resolve(loaded, scan())))) == 0
    assert complete(folder) == [STEPS - 1, STEPS]
    assert not list(folder.glob(".*-checkpoint-*"))
    found = states(folder / f"checkpoint-{STEPS}")
    expected = states(tmp_path / f"straight/checkpoint-{STEPS}")
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.slow
def test_killed_before_any_change_of_a_name_nothing_is_lost(tmp_path: Path, install) -> None:
    """The same, at every rename of a save that replaces an earlier checkpoint and deletes another one."""
    install("oumi-started", "1.0", {"oumi.plugins": {"started": "started:Started"}}, started=TRACKER)
    loaded, folder = configuration(tmp_path, max_steps=3), tmp_path / "run"

    def again() -> LoadedConfig:
        return configuration(tmp_path, max_steps=3, resume_from_checkpoint=str(tmp_path / "kept/checkpoint-2"))

    assert ended(forked(lambda: run_training(loaded, resolve(loaded, scan())))) == 0
    expected = states(folder / "checkpoint-3")
    shutil.copytree(folder, tmp_path / "kept")
    killed = 0
    for count in range(1, 10):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
        shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-1")  # the save of step 3 deletes it

        def killed_at_a_rename(count: int = count) -> None:
            left = [count]

            def watch(event: str, arguments: tuple) -> None:
                if event == "os.rename" and "checkpoint-" in str(arguments[0]):
                    left[0] -= 1
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(watch)
            run_training(again(), resolve(again(), scan()))

        if ended(forked(killed_at_a_rename)) == 0:
            break
        killed += 1
        assert ended(forked(lambda: run_training(loaded, resolve(loaded, scan())))) == 0
        assert start_of(folder) == 3  # the earlier checkpoint-3 or the new one, never an older one
        assert complete(folder)[-1] == 3
        assert not list(folder.glob(".*-checkpoint-*"))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in states(folder / "checkpoint-3").items())
    assert killed == 3  # the old one aside, the new one in, the oldest away


def on_a_small_disk(folder: Path, bytes_of_disk: int, *flags: str, keep: str) -> subprocess.CompletedProcess[str]:
    """Run with an output folder on a tmpfs that only this process sees, and copy `keep` of it out."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(to_yaml(settings(folder, output_dir=str(disk / "run"), max_steps=2)))
    script = (
        f"mount -t tmpfs -o size={bytes_of_disk} none {disk} || exit 99\n"
        f"test -d {folder}/earlier && cp -r {folder}/earlier {disk}/run\n"
        f"{sys.executable} -m oumi_kernel run {config} {' '.join(flags)}\n"
        f"code=$?; cp -r {disk}/run {folder}/{keep}; exit $code"
    )
    command = ["unshare", "--mount", "bash", "-c", script]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip(f"no tmpfs can be mounted here (it takes root): {done.stderr.strip()}")
    return done


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs and unshare are Linux's")
@pytest.mark.parametrize(
    ("disk", "step", "message"),
    [
        (4_096, 1, r"cannot write \S+/run\.json: No space left on device"),
        (1_000_000, 1, r"checkpoint-1 needs 1,896,272 bytes, and [\d,]+ bytes are free"),
        (1_960_000, 1, r"cannot write \S+checkpoint-1: .*It needs 1,896,272 bytes or more; [\d,]+ bytes are free"),
        (3_000_000, 2, r"checkpoint-2 needs 1,9\d\d,\d\d\d bytes, and [\d,]+ bytes are free"),
    ],
)
def test_on_a_full_disk_the_older_checkpoint_stays_and_the_numbers_are_said(
    tmp_path: Path, disk: int, step: int, message: str
) -> None:
    done = on_a_small_disk(tmp_path, disk, keep="left")
    assert done.returncode == 6, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert complete(tmp_path / "left") == list(range(1, step))
    assert not list((tmp_path / "left").glob(".*-checkpoint-*"))
    assert "Logging error" not in done.stderr
    failure = tmp_path / "left/failure.json"
    assert not failure.exists() or json.loads(failure.read_text())["exit_code"] == 6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs and unshare are Linux's")
@pytest.mark.parametrize(
    ("disk", "message"),
    [
        (1_300_000, r"the model needs 632,064 bytes, and [\d,]+ bytes are free"),
        (1_400_000, r"cannot write \S+the model: .*It needs 632,064 bytes or more; [\d,]+ bytes are free"),
    ],
)
def test_a_final_model_that_does_not_fit_leaves_the_older_one_whole(tmp_path: Path, disk: int, message: str) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(QUICKSTART / "model", tmp_path / "earlier")
    done = on_a_small_disk(tmp_path, disk, "--training.save_steps=0", keep="left")
    assert done.returncode == 6, done.stderr
    assert re.search(message, done.stderr), done.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "left")
    expected = dict(AutoModelForCausalLM.from_pretrained(QUICKSTART / "model").named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())
    assert not (tmp_path / "left/.tmp-model").exists()
