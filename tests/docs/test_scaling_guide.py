"""The page on larger runs shows what its command prints, and layers are as alike as it says."""

from __future__ import annotations

import pytest

from tests.benchmarks.plan import CASES, HEAD, TOKENS, Case, planned
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs/scaling.md").read_text()
LINE = Case("HuggingFaceTB/SmolLM2-1.7B-Instruct", 8, 5, (2, 3))


@pytest.fixture(scope="module")
def tables() -> list[list[str]]:
    """Return the lines of FULL_SHARD of the 8 B model, and of a small one by two depths and by its own."""
    return planned([CASES["8b"], LINE, LINE._replace(depths=(5,))], TOKENS, ["full"], "FULL_SHARD")


def test_the_table_is_what_the_command_prints(tables: list[list[str]]) -> None:
    (section,) = (part for part in GUIDE.split("\n### ") if part.startswith(CASES["8b"].model))
    assert len(tables[0]) == 4
    for line in tables[0]:
        assert line in section


def test_a_deep_model_is_on_the_line_through_two_shallow_ones(tables: list[list[str]]) -> None:
    line, itself = ([float(row.split(" | ")[HEAD.index("peak")]) for row in table[2:]] for table in tables[1:])
    assert line == pytest.approx(itself, rel=0.03, abs=0.06)
    assert min(itself) > 1
