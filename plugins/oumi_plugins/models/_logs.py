"""The log records of transformers, which sets its own level and destination when it is imported."""

from __future__ import annotations

import logging

from transformers.utils import logging as library

from oumi_kernel.config import TrainingParams


def follow(training: TrainingParams) -> None:
    """Let `training.dep_log_level` decide which records of transformers there are, and send them where ours go."""
    library.set_verbosity(logging.getLevelNamesMapping()[training.dep_log_level.upper()])
    library.disable_default_handler()
    library.enable_propagation()
