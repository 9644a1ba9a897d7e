"""What one process of several does wrong, and what becomes of the run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.strategies import test_ddp as ddp
from tests.strategies.test_ddp import Start, batches, ended, figures, wait_for, worker_of

pytestmark = pytest.mark.slow
start = ddp.start
METRIC = """
import os, time

def watching(predictions, labels):
    '''Hangs, or is killed, in the second process.'''
    if os.environ.get("RANK") == "1":
        if os.environ["TRAP"] == "kill":
            os.kill(os.getpid(), 9)
        time.sleep(600)
    return 0.0
"""
WATCHING = ("--plugin=./trap.py:watching", "--training.metrics_function=watching")


@pytest.mark.parametrize(
    ("trap", "code", "said"),
    [
        ("hang", 8, "did not end within 0.05 minutes: process 1 did not come."),
        ("kill", 137, "error: process 1 was ended by SIGKILL."),
    ],
)
def test_a_process_that_hangs_or_is_killed_is_named(
    trap: str, code: int, said: str, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text(METRIC)
    monkeypatch.setenv("TRAP", trap)
    process = start("out", "--nproc", "2", "--training.nccl_default_timeout_minutes=0.05", *WATCHING, *batches(2))
    text = ended(process, expected=code)
    assert said in text.strip().splitlines()[-1]
    if trap == "hang":
        assert "exchanging whether to stop did not end" in text


def test_a_loss_that_is_not_finite_in_one_process_stops_all(tmp_path: Path, start: Start) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    odd = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Z"}]}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [row, odd])))
    poison(tmp_path / "model", "Z")
    ended(start("out", "--nproc", "2", *batches(1)), expected=3)
    failure = json.loads((tmp_path / "out/failure.json").read_text())
    assert (failure["exit_code"], failure["error"]) == (3, "NumericsError")


def runs(process: int) -> bool:
    """Return whether a process runs: one that ended may still have its number, until its new parent asks for it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def poison(model: Path, text: str) -> None:
    """Make the embedding of a text's last token infinite."""
    from transformers import AutoTokenizer

    token = AutoTokenizer.from_pretrained(model).encode(text, add_special_tokens=False)[-1]
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "embed_tokens" in name)
    weights[name][token] = float("inf")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_when_the_launcher_is_killed_its_processes_leave_a_checkpoint_and_end(tmp_path: Path, start: Start) -> None:
    flags = ("--training.save_steps=0", "--training.max_steps=5000", "--training.eval_strategy=no", *batches(2))
    process = start("out", "--nproc", "2", *flags)
    wait_for(lambda: (tmp_path / "out/metrics.jsonl").exists() and figures(tmp_path / "out"))
    other = ended(start("out", "--nproc", "2", *flags), expected=6)
    assert "another run, process" in other
    workers = [worker_of(process, rank) for rank in range(2)]
    os.kill(process.pid, signal.SIGKILL)
    _, text = process.communicate(timeout=120)  # the workers write to the same stderr: it ends with them
    assert "is complete" in text
    wait_for(lambda: not any(runs(worker) for worker in workers))  # they close their files before they are gone
    (saved,) = (tmp_path / "out").glob("checkpoint-*")
    assert (saved / "model.safetensors").exists()
    log = (tmp_path / "out/logs/rank_1.log").read_text()
    assert log.count("data.train: ") == 1  # the second run wrote nothing there
