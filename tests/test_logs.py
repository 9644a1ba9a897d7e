"""What a run writes into its log, and what is as before when it ends."""

from __future__ import annotations

import warnings
from pathlib import Path

from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text
from oumi_kernel.logs import logging_to
from tests.conftest import minimal_yaml


def run(folder: Path, *lines: str) -> Run:
    text = minimal_yaml(training="".join(f"  {line}\n" for line in (f"output_dir: {folder}", *lines)))
    return Run(config=load_text(text, "test.yaml", ()).config, folder=folder)


def test_warnings_of_libraries_land_in_the_log_file(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = warnings.showwarning
        with logging_to(run(tmp_path)):
            warnings.warn("this will be renamed", FutureWarning, stacklevel=1)
        assert warnings.showwarning is before
        with logging_to(run(tmp_path, "dep_log_level: error")):
            warnings.warn("this is not asked for", FutureWarning, stacklevel=1)
    text = (tmp_path / "logs/rank_0.log").read_text()
    assert "WARNING py.warnings: " in text
    assert "FutureWarning: this will be renamed" in text
    assert "not asked for" not in text
