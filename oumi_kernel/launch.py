"""Processes: which one this is."""

from __future__ import annotations

import os
from collections.abc import Mapping

from oumi_kernel.contracts import World
from oumi_kernel.errors import ConfigError


def world_from(environment: Mapping[str, str] = os.environ) -> World:
    """Return the place of this process among those that a launcher such as torchrun started; alone if there is none.

    Raises:
        ConfigError: A launcher's variable is no number.
    """
    try:
        return World(
            rank=int(environment.get("RANK", "0")),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            size=int(environment.get("WORLD_SIZE", "1")),
        )
    except ValueError as error:
        message = f"RANK, LOCAL_RANK and WORLD_SIZE in the environment must be whole numbers: {error}."
        raise ConfigError(message) from error
