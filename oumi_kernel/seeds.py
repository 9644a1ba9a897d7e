"""Seeds that a configuration leaves open: drawn once at the start of a run, so that its record can name them."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from oumi_kernel.config import TrainingConfig
from oumi_kernel.contracts import Run, World
from oumi_kernel.errors import ConfigError
from oumi_kernel.loading import LoadedConfig, record_at
from oumi_kernel.loading.document import parse_path
from oumi_kernel.plugins.keys import value_at
from oumi_kernel.plugins.slots import filled_splits

_log = logging.getLogger(__name__)
ALWAYS = ("training.seed", "training.data_seed")
LIMIT = 2**32


def with_seeds(loaded: LoadedConfig, world: World) -> LoadedConfig:
    """Return a configuration with a seed wherever something is random and its seed is null.

    A run that may go on from a checkpoint takes the seeds that the first part of it drew, from the `run.json` there:
    its samples would otherwise come in another order. Several processes must have the same seeds before they meet,
    also those that were started anew: theirs follow from `training.data_seed`.
    """
    known = _seeds_of_the_run_that_goes_on(loaded)
    config = loaded.config
    for path in _open(config):
        own = secrets.randbelow(LIMIT) if world.size == 1 else _derived(path, config.training.data_seed)
        config = _replaced(config, parse_path(path), known.get(path, own))
    return msgspec.structs.replace(loaded, config=config)


def seeds_of(config: TrainingConfig) -> dict[str, int]:
    """Return key -> seed for everything random of a run."""
    found = {path: value_at(config, path) for path in (*ALWAYS, *_data_seeds(config))}
    return {path: seed for path, seed in found.items() if seed is not None}


def _derived(path: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {path}".encode()).digest()[:4])


def _open(config: TrainingConfig) -> list[str]:
    return [path for path in _data_seeds(config) if value_at(config, path) is None]


def _data_seeds(config: TrainingConfig) -> Iterator[str]:
    """Yield the keys of the seeds that have an effect: of datasets that are shuffled, and of mixtures."""
    for name, split in filled_splits(config):
        if any(dataset.mixture_proportion is not None for dataset in split.datasets):
            yield f"data.{name}.seed"
        for index, dataset in enumerate(split.datasets):
            if dataset.shuffle:
                yield f"data.{name}.datasets[{index}].seed"


def _seeds_of_the_run_that_goes_on(loaded: LoadedConfig) -> Mapping[str, int]:
    training = loaded.config.training
    run = Run(config=loaded.config, folder=loaded.folder)
    if training.resume_from_checkpoint:
        file = Path(run.locate(training.resume_from_checkpoint)).parent / "run.json"
    elif training.try_resume_from_last_checkpoint:
        file = run.output_dir / "run.json"
    else:
        return {}
    try:
        record = record_at(file) if file.is_file() else None
    except ConfigError as error:
        _log.warning("seeds that are null are drawn anew: %s", error)
        return {}
    return record.seeds if record else {}


def _replaced(value: Any, parts: tuple[str | int, ...], seed: int) -> Any:
    if not parts:
        return seed
    first, *rest = parts
    if isinstance(first, int):
        return [_replaced(item, tuple(rest), seed) if index == first else item for index, item in enumerate(value)]
    return msgspec.structs.replace(value, **{first: _replaced(getattr(value, first), tuple(rest), seed)})
