"""An environment of their own for the programs that we are compared with: same torch, pinned versions."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

from tests.benchmarks.measure import ROOT, log

SHARED = ("torch", "transformers", "accelerate", "datasets")
PEERS = ("trl==1.16.0",)


def create(folder: Path) -> str:
    """Return the Python of an environment that has the peers; made anew where the versions wanted are others."""
    python, done = folder / "bin/python", folder / "installed.json"
    wanted = [*(f"{name}=={Version(version(name)).public}" for name in SHARED), *PEERS]
    if done.exists() and json.loads(done.read_text()) == wanted:
        return str(python)
    log(f"{folder}: installing {', '.join(wanted)}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    constraints = ROOT / "constraints.txt"
    subprocess.run([str(python), "-m", "pip", "install", "-q", "-c", str(constraints), *wanted], check=True)
    done.write_text(json.dumps(wanted))
    return str(python)
