"""Two processes that do several runs one after another, so that they import torch and the product once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PROGRAM = """
import json, os, sys
from oumi_kernel.cli.configuration import open_sound_config
from oumi_kernel.launch import world_from
from oumi_kernel.loading import split_overrides
from oumi_kernel.plugins import resolve
from oumi_kernel.run import run_training

for name, (port, flags) in json.loads(sys.argv[1]).items():
    os.environ["MASTER_PORT"] = str(port)
    overrides, rest = split_overrides([f"--training.output_dir={name}", *flags])
    assert not rest
    loaded, catalogue = open_sound_config("train.yaml", overrides, ())
    run_training(loaded, resolve(loaded, catalogue, world_size=world_from().size))
"""


def train_in_turn(folder: Path, runs: Mapping[str, Sequence[str]], *, processes: int) -> None:
    """Train `train.yaml` of a folder with each set of flags, into a folder of the name of the run.

    What `oumi run` does in each process of a launcher is all real; no launcher starts them.
    """
    arguments = json.dumps({name: [_free_port(), list(flags)] for name, flags in runs.items()})
    started = [_start(folder, arguments, rank, processes) for rank in range(processes)]
    deadline = time.monotonic() + 500
    try:
        while any(process.poll() is None for process in started) and time.monotonic() < deadline:
            if any(process.poll() for process in started):
                time.sleep(0.5)  # what another one has to say about it
                break
            time.sleep(0.05)
    finally:
        for process in started:
            process.kill()
            process.wait()
    texts = [_said(folder, rank).read_text() for rank in range(processes)]
    assert all(process.returncode == 0 for process in started), "\n".join(text[-2000:] for text in texts)


def _start(folder: Path, arguments: str, rank: int, processes: int) -> subprocess.Popen[bytes]:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    environment = os.environ | place | {"OUMI_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-c", PROGRAM, arguments]
    with _said(folder, rank).open("wb") as said:
        return subprocess.Popen(command, cwd=folder, env=environment, stderr=said)


def _said(folder: Path, rank: int) -> Path:
    return folder / f"said_by_{rank}"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
