"""The state of every random generator, as tensors and JSON."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from oumi_kernel import CheckpointError

TENSORS, SCALARS = "random_state{}.safetensors", "random_state{}.json"
"""Files of the first process; those of the others have their rank in the name."""


def save_random_state(folder: Path, rank: int) -> None:
    """Write the state of this process's generators of Python, NumPy and torch."""
    files = _files(folder, rank)
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, files[0])
    record = {"python": [version, numbers, gauss], "numpy": [name, position, has_gauss, cached]}
    files[1].write_text(json.dumps(record))


def load_random_state(folder: Path, rank: int) -> None:
    """Read what `save_random_state` wrote. A process more than there were keeps the state that it has.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    files = _files(folder, rank)
    if rank and not files[0].exists():
        return
    try:
        tensors = load_file(files[0])
        record = json.loads(files[1].read_bytes())
        version, numbers, gauss = record["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, position, has_gauss, cached = record["numpy"]
        keys = tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state((name, keys, position, has_gauss, cached))
        torch.set_rng_state(tensors["torch"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the random state in {folder} cannot be read: {error}") from error
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def _files(folder: Path, rank: int) -> tuple[Path, Path]:
    mark = f"_{rank}" if rank else ""
    return folder / TENSORS.format(mark), folder / SCALARS.format(mark)
