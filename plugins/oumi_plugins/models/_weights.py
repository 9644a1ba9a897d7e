"""Which weights a model begins with, told by a digest, so that others under the same name are noticed.

A model of a hub is told by its commit, and costs nothing. The files of a folder are read whole up to `WHOLE` bytes
together. Of more, each file of safetensors is told by its header (names, shapes and formats of all tensors) and by both
ends of every tensor: training changes all of a tensor, and rows that are added stand at its end. A change that touches
the inside of a tensor alone is not seen then. Files of other formats are always read whole.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from oumi_kernel.config import ModelParams
from oumi_kernel.contracts import Run
from oumi_plugins.models._names import revision

WHOLE = 2 << 30
"""Bytes of all files that are read whole: a second or a few."""
END = 64 << 10
"""Bytes at each end of a tensor that are read of more."""


def weights_of(params: ModelParams, run: Run) -> dict[str, str]:
    """Return file -> digest of the weights that are loaded, or `commit` -> that of a hub; empty where none are.

    Also empty for a model that is not here at all, about which whoever loads it says more.
    """
    if not params.load_pretrained_weights:
        return {}
    folder = Path(run.locate(params.model_name))
    if not folder.is_dir():
        here = try_to_load_from_cache(params.model_name, CONFIG_NAME, revision=revision(params))
        return {"commit": Path(here).parent.name} if isinstance(here, str) else {}
    files = [path for path in (folder / CONFIG_NAME, *_weight_files(folder)) if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    return {path.name: _digest(path, whole=total <= WHOLE) for path in files}


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads, in the order in which it looks for them."""
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            tree = json.loads((folder / index).read_bytes())
            return [folder / name for name in sorted(set(tree["weight_map"].values()))]
    return []


def _digest(path: Path, *, whole: bool) -> str:
    if not whole and path.suffix == ".safetensors":
        return f"ends {_digest_of_ends(path)}"
    with path.open("rb") as file:
        return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _digest_of_ends(path: Path) -> str:
    """Return the digest of a file's header and of both ends of every tensor."""
    with path.open("rb") as file:
        size = file.read(8)
        header = file.read(int.from_bytes(size, "little"))
        digest, begin = hashlib.sha256(size + header), file.tell()
        tensors: dict[str, Any] = json.loads(header)
        tensors.pop("__metadata__", None)
        for start, stop in sorted(tensor["data_offsets"] for tensor in tensors.values()):
            for place in (start, max(start, stop - END)):
                file.seek(begin + place)
                digest.update(file.read(min(END, stop - place)))
    return digest.hexdigest()
