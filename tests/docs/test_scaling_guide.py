"""The page on larger runs shows what its command prints."""

from __future__ import annotations

import pytest

from tests.benchmarks.plan import CASES, TOKENS, planned
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs/scaling.md").read_text()


def test_the_table_is_what_the_command_prints() -> None:
    (table,) = planned([CASES["8b"]], TOKENS, ["full"], "FULL_SHARD")
    (section,) = (part for part in GUIDE.split("\n### ") if part.startswith(CASES["8b"].model))
    assert len(table) == 4
    for line in table:
        assert line in section
