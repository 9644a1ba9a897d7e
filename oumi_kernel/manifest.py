"""What a run leaves about itself: `run.json`, and `failure.json` when it fails."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from oumi_kernel.errors import CheckpointError
from oumi_kernel.loading import LoadedConfig, RecordedComponent, RunRecord
from oumi_kernel.loading.document import parse_path
from oumi_kernel.loading.record import FORMAT
from oumi_kernel.plugins.catalogue import LOCAL, Entry
from oumi_kernel.report import Report
from oumi_kernel.schema import dump
from oumi_kernel.seeds import seeds_of

LIBRARIES = ("oumi-kernel", "torch", "transformers", "datasets", "tokenizers", "safetensors", "numpy", "peft")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class PreparedData(msgspec.Struct, frozen=True, kw_only=True):
    """What a run begins with: its data, ready to be trained on, and which weights.

    Attributes:
        examples: Split -> prepared examples.
        rows: Split -> rows that they were prepared from.
        fingerprints: Split -> digest of the examples in their order; None where they have none.
        weights: File, or other part -> digest of the model's weights; empty where they are not known.
    """

    examples: Mapping[str, Sequence[Any]]
    rows: Mapping[str, int]
    fingerprints: Mapping[str, str | None]
    weights: Mapping[str, str] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Split -> number of examples."""
        return {name: len(examples) for name, examples in self.examples.items()}


def run_record(loaded: LoadedConfig, components: Iterable[Entry], data: PreparedData) -> RunRecord:
    """Return what `run.json` holds."""
    return RunRecord(
        format=FORMAT,
        config=effective_config(loaded),
        folder=str(loaded.folder.absolute()),
        components=[recorded(entry) for entry in components],
        python=python_version(),
        libraries=library_versions(LIBRARIES),
        machine=machine(),
        seeds=seeds_of(loaded.config),
        rows=dict(data.rows),
        examples=data.counts,
        fingerprints=dict(data.fingerprints),
        weights=dict(data.weights),
    )


def with_model(record: RunRecord, model: Any, reports: Mapping[str, Report]) -> RunRecord:
    """Return a record that says what became of the model."""
    trained, total = parameter_counts(model)
    facts = {family: dict(report.facts) for family, report in reports.items() if report.facts}
    return msgspec.structs.replace(record, model={"parameters": total, "trained": trained, **facts})


def parameter_counts(model: Any) -> tuple[int, int]:
    """Return how many parameters of a model train, and how many there are: by itself, where some are packed."""
    if hasattr(model, "get_nb_trainable_parameters"):
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel() or getattr(p, "ds_numel", 0), p.requires_grad) for p in model.parameters()]  # where divided
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def effective_config(loaded: LoadedConfig) -> dict[str, Any]:
    """Return the whole configuration as plain data, defaults and plugins' own sections included.

    A value that came from the environment is written as `${env:NAME}`, never as its value. A section `peft` that
    nobody wrote is left out: that it is not empty would turn the adapter on.
    """
    config: dict[str, Any] = dump(loaded.config) | copy.deepcopy(loaded.extra_sections)
    if not loaded.document.given("peft"):
        del config["peft"]
    for path, reference in loaded.document.environment.items():
        _put(config, path, reference)
    return config


def recorded(entry: Entry) -> RecordedComponent:
    """Return a component as a record names it; a local file with the digest of its content."""
    return RecordedComponent(
        family=entry.family,
        name=entry.name,
        distribution=entry.distribution,
        version=entry.version,
        value=entry.value,
        sha256=_digest(entry.value.rpartition(":")[0]) if entry.distribution == LOCAL else "",
    )


def fingerprint(examples: Sequence[Any]) -> str | None:
    """Return the digest of prepared examples in their order: their own `content`, else that of their JSON.

    None for examples that know none and are no plain data.
    """
    own = getattr(examples, "content", None)
    if isinstance(own, str):
        return own
    digest, encoder = hashlib.sha256(), msgspec.json.Encoder(order="sorted")
    for index in range(len(examples)):
        try:
            digest.update(encoder.encode(examples[index]) + b"\n")
        except (TypeError, OverflowError):  # no plain data, such as a tensor
            return None
    return digest.hexdigest()


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Return distribution -> version of those that are installed."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def python_version() -> str:
    """Return the version of Python."""
    return platform.python_version()


def machine() -> dict[str, str | None]:
    """Return what else the bits of a result depend on: sums are cut among threads, kernels chosen by processor."""
    known = {"platform": platform.platform(), "processor": _processor(), "cores": str(os.cpu_count())}
    return known | {name: os.environ.get(name) for name in THREADS}


def write_json(path: Path, record: Mapping[str, Any] | msgspec.Struct) -> None:
    """Write `record` as indented JSON.

    Raises:
        CheckpointError: The file cannot be written.
    """
    text = msgspec.json.format(msgspec.json.encode(record), indent=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".tmp-{path.name}")
        try:
            beside.write_bytes(text + b"\n")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}. Choose another training.output_dir or make it writable."
        ) from error


def _processor() -> str:
    """Return the model of the processor; where the system does not tell, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _digest(module: str) -> str:
    """Return the digest of the file of a module, which may be a path; empty where there is none."""
    spec = None if module.endswith(".py") else importlib.util.find_spec(module)
    file = Path(module if module.endswith(".py") else (spec and spec.origin) or "")
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _put(tree: Any, path: str, value: str) -> None:
    *parents, last = parse_path(path)
    for part in parents:
        tree = tree[part]
    tree[last] = value
