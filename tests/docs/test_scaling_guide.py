"""The page on larger runs shows what its command prints, and layers are as alike as it says."""

from __future__ import annotations

import pytest

from tests.benchmarks.plan import CASES, HEAD, TOKENS, Case, planned
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs/scaling.md").read_text()


def test_the_table_is_what_the_command_prints() -> None:
    (section,) = (part for part in GUIDE.split("\n### ") if part.startswith(CASES["8b"].model))
    printed = list(planned("8b", TOKENS, ["full"], "FULL_SHARD"))
    assert len(printed) == 4
    for line in printed:
        assert line in section


def test_a_deep_model_is_on_the_line_through_two_shallow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    shallow = Case("HuggingFaceTB/SmolLM2-1.7B-Instruct", 8, 9, (4, 6))
    for name, case in {"line": shallow, "itself": shallow._replace(depths=(9, 10))}.items():
        monkeypatch.setitem(CASES, name, case)
    line, itself = ([row.split(" | ") for row in planned(name, 1024, ["full"], "ZeRO 3")] for name in ("line", "itself"))
    peak = HEAD.index("peak")
    assert len(line) == 4
    for left, right in zip(line[2:], itself[2:], strict=True):
        assert float(left[peak]) == pytest.approx(float(right[peak]), rel=0.03, abs=0.06)
