"""`run.json`: the record of a run, which is a configuration again. What it holds, and how it is told from one."""

from __future__ import annotations

from typing import Any

import msgspec

from oumi_kernel.errors import ConfigError, Place, Problem

FORMAT = 1
"""Version of the record's form. It rises when a field changes its meaning; further fields do not raise it."""


class RecordedComponent(msgspec.Struct, frozen=True, kw_only=True):
    """A component that took part.

    Attributes:
        family: The family, such as `optimizers`.
        name: The name that the configuration wrote.
        distribution: The distribution that offered it, or `local file`.
        version: The version of that distribution.
        value: What was imported: `module:object`, or `path/to/file.py:object`.
        sha256: For a local file: the digest of its content.
    """

    family: str
    name: str
    distribution: str
    version: str
    value: str
    sha256: str = ""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is needed to repeat a run, and to say what is not as it was.

    Attributes:
        format: `FORMAT` of the program that wrote it.
        config: The effective configuration, with the seeds that were drawn; environment variables by name.
        folder: Absolute folder of the configuration file, beside which `./name` is read.
        components: What took part.
        python: Version of Python.
        libraries: Distribution -> version.
        machine: What else the bits of a result depend on: platform, processor, cores, thread settings.
        seeds: Key -> every seed of the run, those drawn for keys that were null among them.
        rows: Split -> rows, before preparation dropped any.
        examples: Split -> examples, after it.
        fingerprints: Split -> digest of the prepared examples in their order; None where they have none.
        model: How many parameters there are (`parameters`) and train (`trained`), and by family what became of what was
            asked of the model; empty if the run ended before there was one.
    """

    format: int
    config: dict[str, Any]
    folder: str
    components: list[RecordedComponent]
    python: str
    libraries: dict[str, str]
    machine: dict[str, str | None] = {}
    seeds: dict[str, int] = {}
    rows: dict[str, int] = {}
    examples: dict[str, int] = {}
    fingerprints: dict[str, str | None] = {}
    model: dict[str, Any] = {}


def record_in(text: str, source: str) -> RunRecord | None:
    """Return the record that a file holds; None for any other text, which is then read as a configuration.

    Args:
        text: The content of the file.
        source: The file, as messages name it.

    Raises:
        ConfigError: It is a record, but of another format, or damaged.
    """
    if not text.lstrip().startswith("{"):
        return None
    try:
        tree = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None  # the reader of YAML says what is wrong, and where
    if not (isinstance(tree, dict) and "format" in tree and isinstance(tree.get("config"), dict)):
        return None
    if tree["format"] != FORMAT:
        message = f"this record of a run has the format {tree['format']!r}; this oumi-kernel reads format {FORMAT}."
        raise ConfigError(_problem(message, "Use the version of oumi-kernel that its `libraries` name.", source))
    try:
        return msgspec.convert(tree, RunRecord)
    except msgspec.ValidationError as error:
        message = f"this record of a run is damaged: {error}."
        hint = "Take its `config` out into a file of its own to run that alone."
        raise ConfigError(_problem(message, hint, source)) from error


def _problem(message: str, hint: str, source: str) -> Problem:
    return Problem(code="record", path="", message=message, hint=hint, place=Place(source))
