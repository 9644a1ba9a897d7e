"""Adapters and the models that they were trained on: base beside adapter, or both in one set of weights.

The base is read again in the precision of its files: one that was quantised to be trained on is no base to save.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from oumi_kernel.component import NoParams
from oumi_kernel.config import DataParams, ModelParams, TrainingConfig, TrainingParams
from oumi_kernel.config.peft import PeftSaveMode
from oumi_kernel.contracts import Run
from oumi_kernel.disk import sync
from oumi_kernel.errors import CheckpointError, ConfigError
from oumi_kernel.loading import RunRecord, record_at
from oumi_kernel.merged import Merged
from oumi_kernel.plugins import FAMILIES, Catalogue, Kernel, Resolution, Selected, scan
from oumi_kernel.plugins.families import DEFAULT

_log = logging.getLogger(__name__)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_CONFIG = "config.json"
TOKENIZER = "tokenizer_config.json"


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A saved adapter.

    Attributes:
        folder: Where it is.
        base: The model that it was trained on: a hub id, or the path of a folder.
        revision: Branch, tag or commit of that model.
        method: The method's name in the adapter's own configuration.
    """

    folder: Path
    base: str
    revision: str | None
    method: str


def merge(folder: Path, output: Path | None = None, base: str | None = None) -> tuple[Adapter, Merged, Path]:
    """Merge a saved adapter into its base, check the result, and write it as a whole model.

    Args:
        folder: A run's folder, a checkpoint's, or any folder of an adapter.
        output: Where to write; `<folder>-merged` unless given.
        base: The model to merge into, where it is not found under the name that the adapter knows.

    Returns:
        The adapter with the base that was used, what the check found, and the folder of the merged model.

    Raises:
        ConfigError: There is no adapter, its base is not found or is quantised, its method cannot be merged, or the
            output exists.
        NumericsError: Adapter and merged weights disagree; nothing was written.
        CheckpointError: The merged model cannot be written, or not be read back.
    """
    adapter = read_adapter(folder)
    target = output or folder.absolute().with_name(f"{folder.absolute().name}-merged")
    refuse_what_is_there(target)
    kernel, run = _stage(adapter, base)
    name, revision = run.config.model.model_name, run.config.model.model_revision
    adapter = msgspec.structs.replace(adapter, base=name, revision=revision)
    with kernel.manager.attributed(), _without_keys(adapter):
        tokenizer = kernel.build_tokenizer(run)
        beside = target.with_name(f".tmp-{target.name}")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            merged = write_merged(kernel, run, tokenizer, adapter, beside)
            put_in_place(beside, target)
        except OSError as error:
            raise CheckpointError(f"cannot write {target}: {error}. Choose another folder: --output DIR.") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return adapter, merged, target


def complete(kernel: Kernel, run: Run, tokenizer: Any, folder: Path, mode: PeftSaveMode) -> None:
    """Turn a folder that holds an adapter into what `mode` asks for; on failure it is left with the adapter alone.

    A folder with both opens as the adapted model: transformers puts an adapter that lies beside a model into it.
    """
    if mode is PeftSaveMode.ADAPTER_ONLY:
        return
    adapter, inside = read_adapter(folder), folder / "model"
    inside.mkdir()
    try:
        if mode is PeftSaveMode.MERGED:
            merged = write_merged(kernel, run, tokenizer, adapter, inside)
            _log.info("merged: logits differ from those with the adapter by %.2g at most", merged.difference)
            for path in (path for path in folder.iterdir() if path != inside):
                path.unlink()
        else:
            loader, base = _base_of(kernel, run, tokenizer, adapter)
            loader.save_model(base, base.state_dict, tokenizer, inside, run)
        for path in inside.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(inside)


def write_merged(kernel: Kernel, run: Run, tokenizer: Any, adapter: Adapter, directory: Path) -> Merged:
    """Merge an adapter into its base, and write the model, tokenizer, template and generation settings."""
    loader, model = _base_of(kernel, run, tokenizer, adapter)
    model, merged = kernel.merge_adapter(model, adapter.folder, tokenizer, run)
    loader.save_model(model, model.state_dict, tokenizer, directory, run)
    return merged


def read_adapter(folder: Path) -> Adapter:
    """Return what a folder says of its adapter.

    Raises:
        ConfigError: It holds none.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ConfigError(f"{folder} {what}; give the folder of a run, of a checkpoint, or of an adapter.")
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ConfigError(_why_there_is_none(folder))
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(f"{folder} has {ADAPTER_CONFIG}, but no {ADAPTER_WEIGHTS}: its weights are missing.")
    try:
        found = msgspec.json.decode((folder / ADAPTER_CONFIG).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{folder / ADAPTER_CONFIG} cannot be read: {error}.") from error
    return Adapter(
        folder=folder,
        base=found.get("base_model_name_or_path") or "",
        revision=found.get("revision"),
        method=str(found.get("peft_type") or "unknown"),
    )


def _why_there_is_none(folder: Path) -> str:
    if (folder / MODEL_CONFIG).is_file():
        return f"{folder} holds a whole model and no adapter: there is nothing to merge, it opens as it is."
    checkpoints = sorted(folder.glob(f"checkpoint-*/{ADAPTER_CONFIG}"), key=lambda path: path.stat().st_mtime)
    if checkpoints:
        newest = checkpoints[-1].parent
        return f"{folder} has no adapter of a finished run. Its newest checkpoint has one: oumi merge {newest}"
    return f"{folder} holds no adapter: there is no {ADAPTER_CONFIG}."


@contextmanager
def _without_keys(adapter: Adapter) -> Generator[None]:
    """Say what is wrong with a base in the words of the command: there is no configuration with keys here."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            [
                msgspec.structs.replace(
                    problem,
                    path="",
                    message=f"the base model of {adapter.folder}: {problem.message}",
                    hint=f"{problem.hint} --base MODEL says where it is now.".strip(),
                )
                if problem.path
                else problem
                for problem in error.problems
            ]
        ) from error


def refuse_what_is_there(target: Path) -> None:
    """Refuse to write where there is something.

    Raises:
        ConfigError: There is.
    """
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        raise ConfigError(f"--output: {target} exists and is not empty. Give another folder, or delete it.")


def base_alone(kernel: Kernel, run: Run, name: str, revision: str | None) -> tuple[Kernel, Run]:
    """Return what builds the base of an adapter without adapter and quantisation, in the precision of its files."""
    params = msgspec.structs.replace(
        run.config.model,
        model_name=name,
        model_revision=revision,
        torch_dtype_str="auto",
        adapter_model=None,
        attn_implementation=None,
        freeze_layers=[],
    )
    alone = msgspec.structs.replace(run, config=msgspec.structs.replace(run.config, model=params))
    return kernel.with_model(params), alone


def _base_of(kernel: Kernel, run: Run, tokenizer: Any, adapter: Adapter) -> tuple[Kernel, Any]:
    """Return the loader of an adapter's base, and the base."""
    loader, alone = base_alone(kernel, run, adapter.base, adapter.revision)
    return loader, loader.build_model(tokenizer, {}, alone)


def _stage(adapter: Adapter, base: str | None) -> tuple[Kernel, Run]:
    """Return the components that load the base and merge the adapter, and a run that has only a model."""
    name = base or adapter.base
    if not name:
        raise ConfigError(f"{adapter.folder / ADAPTER_CONFIG} names no base model. Give it: --base MODEL.")
    run = Run(config=TrainingConfig(model=ModelParams(model_name=name), data=DataParams()), folder=Path())
    located = run.locate(name)
    if located.startswith("/") and not Path(located).is_dir():
        whose = "--base" if base else f"the base model of {adapter.folder}"
        raise ConfigError(f"{whose}, {located}, is not there. Say where it is now: --base MODEL (folder or hub id).")
    _refuse_quantised(Path(located))
    record = _record_of(adapter.folder)
    before = record.config if record else {}
    kept = {key: before.get("model", {}).get(key) for key in ("trust_remote_code", "model_kwargs")}
    has_tokenizer = (adapter.folder / TOKENIZER).is_file()
    section: dict[str, Any] = {key: value for key, value in kept.items() if value} | {
        "model_name": located,
        "model_revision": None if base else adapter.revision,
        "tokenizer_name": str(adapter.folder.absolute()) if has_tokenizer else None,
    }
    try:
        model = msgspec.convert(section, ModelParams)
        training = msgspec.convert(
            {"seed": before.get("training", {}).get("seed", TrainingParams().seed)}, TrainingParams
        )
    except msgspec.ValidationError as error:
        raise ConfigError(f"the run.json of {adapter.folder} cannot be used: {error}.") from error
    if model.trust_remote_code:
        _log.warning("the run had model.trust_remote_code on: code of the model's repository runs on this machine")
    catalogue = scan()
    chosen = (
        _select(catalogue, "models", model.model_name, params=model),
        _select(catalogue, "peft", before.get("peft", {}).get("peft_method") or DEFAULT),
    )
    config = TrainingConfig(model=model, data=DataParams(), training=training)
    kernel = Kernel(Resolution(selected=chosen, problems=(), unavailable=(), warnings=()))
    return kernel, msgspec.structs.replace(run, config=config)


def _refuse_quantised(base: Path) -> None:
    """Refuse a folder whose weights are quantised, before it is loaded in another way than it was trained on."""
    try:
        found = msgspec.json.decode((base / MODEL_CONFIG).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return  # a hub id, or a folder of which the loader says what is wrong
    quantised = found.get("quantization_config")
    if quantised:
        raise ConfigError(
            f"the base {base} is quantised ({quantised.get('quant_method')}); merging into it would round what the "
            "adapter learned away. Needed is the model that it was made from, in 16 or 32 bits: --base MODEL."
        )


def _select(catalogue: Catalogue, family: str, name: str, params: Any = None) -> Selected:
    """Select one component apart from any configuration; a name that nobody has means the family's default.

    What it is told here is in what it reads, so that it has no parameters of its own.
    """
    entry = catalogue.find(family, name) or catalogue.find(family, DEFAULT)
    if entry is None:
        raise ConfigError(f"no {FAMILIES[family].noun} is installed.")
    component = catalogue.load(entry)
    for module, requirement in component.requires.items():
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"'{entry.name}' needs {module}, which is not installed: pip install '{requirement}'")
    return Selected(entry=entry, component=component, path="", params=params or NoParams())


def _record_of(folder: Path) -> RunRecord | None:
    """Return the record of the run that left an adapter, beside it or, for a checkpoint, above it."""
    file = next((path for path in (folder / "run.json", folder.absolute().parent / "run.json") if path.is_file()), None)
    return record_at(file) if file else None


def put_in_place(beside: Path, target: Path) -> None:
    """Move a folder whose files are written to a place that is empty or not there."""
    for file in beside.rglob("*"):
        if file.is_file():
            sync(file)
    if target.is_dir():
        target.rmdir()
    beside.replace(target)
    sync(target.parent)
