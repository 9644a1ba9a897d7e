"""Repeating a run from its `run.json`: what must not be overwritten, and what is not as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from oumi_kernel.contracts import Run
from oumi_kernel.errors import ConfigError, Problem
from oumi_kernel.loading import LoadedConfig, RunRecord
from oumi_kernel.manifest import PreparedData, library_versions, machine, python_version, recorded
from oumi_kernel.plugins import Entry
from oumi_kernel.plugins.catalogue import LOCAL

OUTPUT = "training.output_dir"


def local_components(record: RunRecord, given: Sequence[str]) -> list[str]:
    """Return the components from local files that took part, as `--plugin` names them.

    Args:
        record: The record of the run.
        given: What `--plugin` names now; a name that stands there too replaces the recorded one.
    """
    names = {reference.rpartition(":")[2] for reference in given}
    found = {c.value for c in record.components if c.distribution == LOCAL and c.name not in names}
    return sorted(found)


def refuse_to_overwrite(loaded: LoadedConfig) -> None:
    """Refuse to put a repeat in the place of a run, unless the command line says so.

    Raises:
        ConfigError: `training.output_dir` is the recorded one, and holds a run.
    """
    folder = loaded.config.training.output_dir
    origin = loaded.document.origin(OUTPUT)
    if loaded.record is None or origin.kind == "override":
        return
    if (Run(config=loaded.config, folder=loaded.folder).output_dir / "run.json").exists():
        message = f"'{folder}' holds a run already, which its repeat would overwrite."
        hint = f"Give the folder: --{OUTPUT} {folder.rstrip('/')}_repeat (or the same, to overwrite or go on with it)."
        raise ConfigError(Problem(code="record", path=OUTPUT, message=message, hint=hint, place=origin.place))


def version_differences(record: RunRecord, entries: Sequence[Entry]) -> Iterator[Problem]:
    """Yield a warning for everything but the data that is not as it was when the run was recorded.

    Args:
        record: The record of the run.
        entries: The components that take part now. One that does not (an override chose another) is no difference.
    """
    now = {(c.family, c.name): c for c in map(recorded, entries)}
    versions = {"python": (record.python, python_version())}
    here = library_versions(record.libraries)
    versions |= {name: (version, here.get(name, "")) for name, version in record.libraries.items()}
    for then in record.components:
        current = now.get((then.family, then.name))
        if current is None:
            continue
        if then.distribution != current.distribution:
            yield _differs(f"'{then.name}' of {then.family}", then.distribution, current.distribution)
        elif then.sha256 != current.sha256:
            yield _differs(f"the file {then.value}", f"sha256 {then.sha256[:12]}", f"sha256 {current.sha256[:12]}")
        else:
            versions[then.distribution] = (then.version, current.version)
    for name, (before, after) in versions.items():
        if before != after:
            yield _differs(name, before, after or "not installed")
    current_machine = machine()
    for name, before in record.machine.items():
        if before != current_machine.get(name):
            yield _differs(name, before or "not set", current_machine.get(name) or "not set")


def data_difference(record: RunRecord, now: PreparedData) -> str:
    """Return a text that cannot be overlooked, if examples or the model's weights are not those of the recorded run."""
    weights = list(_other_weights(record.weights, now.weights))
    lines: list[str] = []
    for split in dict.fromkeys((*record.fingerprints, *now.fingerprints)):
        before, after = record.fingerprints.get(split), now.fingerprints.get(split)
        if before != after:
            lines.append(f"data.{split}: fingerprint {_short(before)} then, {_short(after)} now")
            lines += [
                f"data.{split}: {then.get(split, 0):,} {what} then, {count.get(split, 0):,} now"
                for what, then, count in (("rows", record.rows, now.rows), ("examples", record.examples, now.counts))
                if then.get(split) != count.get(split)
            ]
    what = " AND ".join(name for name, found in (("DATA", lines), ("WEIGHTS", weights)) if found)
    title = f"OTHER {what} THAN IN THE RECORDED RUN. This is no repeat of it."
    return _framed([title, *lines, *weights]) if what else ""


def _other_weights(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Yield what is other about the weights; nothing where they are not known, such as of random ones."""
    for part in dict.fromkeys((*then, *now)) if then and now else ():
        if then.get(part) != now.get(part):
            yield f"the model's {part}: {_short(then.get(part))} then, {_short(now.get(part))} now"


def _framed(lines: Sequence[str]) -> str:
    rule = "!" * max(map(len, lines))
    return "\n".join((rule, *lines, rule))


def _short(fingerprint: str | None) -> str:
    return fingerprint[:16] if fingerprint else "none"


def _differs(what: str, before: str, after: str) -> Problem:
    message = f"{what}: {before} when the run was recorded, {after} now; the repeat may differ."
    return Problem(code="not-as-recorded", path="", message=message, severity="warning")
