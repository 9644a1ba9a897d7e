"""A file and flags -> a typed configuration that knows where each value came from."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from oumi_kernel.config import TrainingConfig
from oumi_kernel.config.rules import check
from oumi_kernel.errors import ConfigError, Place, Problem
from oumi_kernel.loading.aliases import apply_aliases
from oumi_kernel.loading.decode import decode
from oumi_kernel.loading.document import Document
from oumi_kernel.loading.interpolation import interpolate
from oumi_kernel.loading.overrides import Override, apply_overrides
from oumi_kernel.loading.record import RunRecord, record_in
from oumi_kernel.loading.yaml_reader import MAX_BYTES, Node, line_of, read_yaml


class LoadedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration, typed, with its origins.

    Attributes:
        config: The typed configuration.
        document: The raw tree and where its values were written.
        folder: The folder of the file, against which `./name` is read.
        extra_sections: Raw top-level sections that installed plugins own.
        problems: What is wrong; where there is anything, defaults stand in for bad values.
        warnings: What is allowed but probably not meant.
        record: The record of a run that the configuration was taken from, if it was.
    """

    config: TrainingConfig
    document: Document
    folder: Path = Path()
    extra_sections: dict[str, Any] = {}
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    record: RunRecord | None = None


def load_config(path: Path, overrides: Sequence[Override] = (), *, sections: Collection[str] = ()) -> LoadedConfig:
    """Load a file.

    Args:
        path: The YAML (or JSON) file, or the `run.json` of a run, whose `config` is then read.
        overrides: Flags that change it, the last one wins.
        sections: Names of top-level sections that plugins own; they are kept raw.

    Raises:
        ConfigError: Holds every problem of file and flags.
    """
    return _sound(examine_config(path, overrides, sections=sections))


def examine_config(path: Path, overrides: Sequence[Override] = (), *, sections: Collection[str] = ()) -> LoadedConfig:
    """Load a file as far as it goes; what is wrong with values is in `problems`. See `load_config`.

    Raises:
        ConfigError: The file cannot be read, or is no mapping in YAML.
    """
    text = _read(path)
    record = record_in(text, str(path))
    loaded = _examine(text, str(path), overrides, sections, inside="config" if record else "")
    if record is None:
        return msgspec.structs.replace(loaded, folder=path.parent)
    if Path(record.folder).is_dir():
        return msgspec.structs.replace(loaded, folder=Path(record.folder), record=record)
    if not _names_beside(record.config):
        return msgspec.structs.replace(loaded, folder=path.parent, record=record)
    message = f"the folder {record.folder}, beside which the run read ./name, is not here."
    message += f" Such names are looked for in {path.parent}, then in the current folder."
    moved = Problem(code="record", path="", message=message, place=Place(str(path)), severity="warning")
    return msgspec.structs.replace(loaded, folder=path.parent, record=record, warnings=(*loaded.warnings, moved))


def _names_beside(value: Any) -> bool:
    """Say whether a name in a configuration is one that is looked for beside its file."""
    if isinstance(value, dict | list):
        items = cast(Iterable[Any], value.values() if isinstance(value, dict) else value)
        return any(_names_beside(item) for item in items)
    return isinstance(value, str) and value.startswith(("./", "../"))


def record_at(path: Path) -> RunRecord | None:
    """Return the record of a run that a file holds; None for a configuration.

    Raises:
        ConfigError: The file cannot be read, or the record is damaged or of another format.
    """
    return record_in(_read(path), str(path))


def load_text(
    text: str, name: str, overrides: Sequence[Override] = (), *, sections: Collection[str] = ()
) -> LoadedConfig:
    """Load text; `name` is what messages call it. See `load_config`."""
    return _sound(_examine(text, name, overrides, sections))


def _sound(loaded: LoadedConfig) -> LoadedConfig:
    if loaded.problems:
        raise ConfigError((*loaded.problems, *loaded.warnings))
    return loaded


def _examine(
    text: str, name: str, overrides: Sequence[Override], sections: Collection[str], inside: str = ""
) -> LoadedConfig:
    root = read_yaml(text, name)
    root = root.items[inside] if inside else root
    if root.value is None:
        root = Node(value={}, line=1, column=1)
    if not isinstance(root.value, dict):
        place = Place(name, root.line, root.column, line_of(text, root.line))
        message = "a configuration is a mapping of sections: model, data, training, ..."
        raise ConfigError(Problem(code="wrong-type", path="", message=message, place=place))
    document = Document(root, text, name)
    for section, content in root.value.items():
        root.value[section] = {} if content is None else content  # a section whose keys are all commented out
    found = [*apply_overrides(document, overrides), *interpolate(document), *apply_aliases(document)]
    extra = {section: document.data.pop(section) for section in sections if section in document.data}
    config, problems = decode(document.data, TrainingConfig, document=document)
    document.data.update(extra)
    found += _without_consequences(problems, found)
    if config is None:  # no default can stand in for what is missing
        raise ConfigError(found)
    found += _without_consequences([_placed(problem, document) for problem in check(config)], found)
    errors = tuple(problem for problem in found if problem.severity == "error")
    warnings = tuple(problem for problem in found if problem.severity == "warning")
    return LoadedConfig(config=config, document=document, extra_sections=extra, problems=errors, warnings=warnings)


def _without_consequences(problems: Sequence[Problem], known: Sequence[Problem]) -> list[Problem]:
    """Return the problems of keys that have none yet, nor a section above them that has."""
    faulty = [problem.path for problem in known if problem.severity == "error" and problem.path]
    return [p for p in problems if not any(p.path == f or p.path.startswith((f"{f}.", f"{f}[")) for f in faulty)]


def _placed(problem: Problem, document: Document) -> Problem:
    return msgspec.structs.replace(problem, place=document.place(problem.path))


def _read(path: Path) -> str:
    """Return the text of a file, and say what is wrong with the file otherwise."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _file_error(path, f"is larger than {MAX_BYTES >> 20} MiB; is it a configuration?")
        if not content.strip():
            raise _file_error(path, "is empty.", "A configuration needs at least the sections model and data.")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], 1)
        hint = f"did you mean '{path.parent / near[0]}'?" if near else ""
        raise _file_error(path, "does not exist.", hint) from None
    except IsADirectoryError:
        files = sorted(p.name for p in path.glob("*.y*ml"))
        raise _file_error(path, "is a folder.", f"It holds: {', '.join(files)}" if files else "") from None
    except UnicodeDecodeError as error:
        raise _file_error(path, f"is not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise _file_error(path, f"cannot be read: {error.strerror}.") from None


def _file_error(path: Path, message: str, hint: str = "") -> ConfigError:
    return ConfigError(Problem(code="no-file", path="", message=f"{path} {message}", hint=hint, place=Place(str(path))))
