"""The page on larger runs shows what its command prints, and layers are as alike as it says."""

from __future__ import annotations

import pytest

from tests.benchmarks.plan import CASES, TOKENS, Case, planned
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs/scaling.md").read_text()


def test_the_table_is_what_the_command_prints() -> None:
    (section,) = (part for part in GUIDE.split("\n### ") if part.startswith(CASES["8b"].model))
    for line in planned("8b", TOKENS, ["full"], "FULL_SHARD"):
        assert line in section + "\n"


@pytest.mark.parametrize("strategy", ["ZeRO 1", "HYBRID_SHARD"])
def test_a_deep_model_is_on_the_line_through_two_shallow_ones(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shallow = Case("HuggingFaceTB/SmolLM2-1.7B-Instruct", 16, 9, (4, 6))
    for name, case in {"line": shallow, "itself": shallow._replace(depths=(9, 10))}.items():
        monkeypatch.setitem(CASES, name, case)
    line, itself = (list(planned(name, 256, ["full"], strategy)) for name in ("line", "itself"))
    assert len(line) == 4
    assert line == itself
