"""A fresh environment that borrows the libraries of this one, so that only our own packages are installed into it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT


class Environment:
    """A virtual environment in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.bin = folder / "bin"
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, *packages: Path | str) -> None:
        command = [self.bin / "python", "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
        done = subprocess.run([*map(str, command), *map(str, packages)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def oumi(self, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / "oumi"), *arguments]
        environment = {"PATH": str(self.bin), "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    command.append(str(ROOT))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Environment]:
    environment = Environment(tmp_path_factory.mktemp("environment") / "venv")
    environment.install(wheel)
    return environment
