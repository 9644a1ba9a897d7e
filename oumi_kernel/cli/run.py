"""`oumi run` and `oumi train`: load, resolve, train."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from oumi_kernel.cli.launching import ONE_PER_GPU, Launch
from oumi_kernel.loading import Override

DEFAULT_ROWS = 2
"""Examples of each split that a dry run shows."""


def run(
    config: str,
    /,
    *,
    dry_run: bool = False,
    rows: Annotated[int | None, Parameter(show_default=False)] = None,
    plugin: Annotated[Sequence[str], Parameter(show_default=False)] = (),
    launch: Annotated[Launch, Parameter(name="*")] = ONE_PER_GPU,
    overrides: Annotated[Sequence[Override], Parameter(parse=False)],
) -> int:
    """Train as a configuration says.

    Args:
        config: A YAML file, the run.json of a run to repeat it, or the name of a shipped configuration.
        dry_run: Do everything up to the first step, without weights, and show what would be trained. Writes no output.
        rows: Examples of each split that a dry run shows, 2 unless given.
        plugin: A dataset or metric from a local file: ./my_metric.py:bleu. May be repeated.
        launch: How many processes there are to be.
        overrides: Keys given on the command line.

    Raises:
        OumiError: What is wrong, with its exit code; nothing was trained if it is the configuration.
    """
    from oumi_kernel.cli.configuration import open_sound_config
    from oumi_kernel.errors import ConfigError
    from oumi_kernel.launch import command_of_this_process, listen_to_launcher
    from oumi_kernel.plugins import resolve
    from oumi_kernel.repeat import refuse_to_overwrite

    if rows is not None and (rows < 0 or not dry_run):
        raise ConfigError("--rows is the number of examples that --dry-run shows.")
    loaded, catalogue = open_sound_config(config, overrides, plugin)
    processes, world = launch.start()
    resolution = resolve(loaded, catalogue, world_size=world.size)
    resolution.raise_for_problems(strict=True)
    refuse_to_overwrite(loaded)

    # torch's threads spin while they wait unless told otherwise, which on a busy machine costs several times the work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if dry_run:
        from oumi_kernel.cli.dry_run import Printed
        from oumi_kernel.dry_run import dry_run as rehearse

        rehearse(loaded, resolution, world, DEFAULT_ROWS if rows is None else rows, Printed())
    elif processes.size > 1:
        from oumi_kernel.plugins import Kernel

        return Kernel(resolution).launch(command_of_this_process(), processes)
    else:
        from oumi_kernel.run import run_training

        if listen_to_launcher():
            run_training(loaded, resolution, world)
    return 0


def train(
    *,
    config: Annotated[str, Parameter(alias="-c")],
    dry_run: bool = False,
    rows: Annotated[int | None, Parameter(show_default=False)] = None,
    plugin: Annotated[Sequence[str], Parameter(show_default=False)] = (),
    launch: Annotated[Launch, Parameter(name="*")] = ONE_PER_GPU,
    overrides: Annotated[Sequence[Override], Parameter(parse=False)],
) -> int:
    """Do what `run` does.

    Args:
        config: A YAML file, the run.json of a run to repeat it, or the name of a shipped configuration.
        dry_run: Do everything up to the first step, without weights, and show what would be trained. Writes no output.
        rows: Examples of each split that a dry run shows, 2 unless given.
        plugin: A dataset or metric from a local file: ./my_metric.py:bleu. May be repeated.
        launch: How many processes there are to be.
        overrides: Keys given on the command line.
    """
    return run(config, dry_run=dry_run, rows=rows, plugin=plugin, launch=launch, overrides=overrides)
