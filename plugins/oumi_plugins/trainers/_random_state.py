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

TENSORS = "random_state.safetensors"
SCALARS = "random_state.json"


def save_random_state(folder: Path) -> None:
    """Write the state of the generators of Python, NumPy and torch."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, folder / TENSORS)
    record = {"python": [version, numbers, gauss], "numpy": [name, position, has_gauss, cached]}
    (folder / SCALARS).write_text(json.dumps(record))


def load_random_state(folder: Path) -> None:
    """Read what `save_random_state` wrote.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    try:
        tensors = load_file(folder / TENSORS)
        record = json.loads((folder / SCALARS).read_bytes())
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
