"""`oumi config validate`: every problem at once, before anything is loaded that takes time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from oumi_kernel.errors import ConfigError, OumiError, Problem
from oumi_kernel.loading import Override


def validate(
    *configs: str,
    format: Literal["text", "json", "github"] = "text",
    plugin: Annotated[Sequence[str], Parameter(show_default=False)] = (),
    overrides: Annotated[Sequence[Override], Parameter(parse=False)],
) -> int:
    """Show what is wrong with configurations, and what of them cannot run here.

    Args:
        configs: YAML files, or names of shipped configurations.
        format: text, json (one document), or github (annotations of a workflow).
        plugin: A dataset or metric from a local file: ./my_metric.py:bleu. May be repeated.
        overrides: Keys given on the command line, applied to each file.

    Returns:
        0 if there are only warnings, otherwise 2.
    """
    from oumi_kernel.loading import render_problems

    if not configs:
        raise ConfigError("oumi config validate needs at least one configuration: a path, or 'quickstart'.")
    found = {name: tuple(_problems_of(name, overrides, plugin)) for name in configs}
    problems = [problem for of_one in found.values() for problem in of_one]
    if format == "text":
        sys.stdout.write("".join(f"{name}: valid\n" for name, of_one in found.items() if not of_one))
    if problems or format == "json":
        sys.stdout.write(render_problems(problems, format).rstrip("\n") + "\n")
    return 2 if any(problem.severity == "error" for problem in problems) else 0


def _problems_of(name: str, overrides: Sequence[Override], plugins: Sequence[str]) -> Iterator[Problem]:
    from oumi_kernel.cli.configuration import open_config
    from oumi_kernel.plugins import resolve
    from oumi_kernel.repeat import version_differences

    try:
        loaded, catalogue = open_config(name, overrides, plugins)
    except ConfigError as error:
        yield from error.problems
        return
    except OumiError as error:
        yield Problem(code="plugin", path="", message=str(error))
        return
    yield from loaded.problems
    yield from loaded.warnings
    resolution = resolve(loaded, catalogue)
    yield from resolution.problems
    yield from resolution.warnings
    if loaded.record:
        yield from version_differences(loaded.record, [choice.entry for choice in resolution.selected])
    for problem in resolution.unavailable:
        message = f"valid, but cannot run here: {problem.message}"
        yield msgspec.structs.replace(problem, message=message, severity="warning")
