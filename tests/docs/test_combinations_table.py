"""`docs/combinations.md` shows the table of combinations; `python -m tests.docs.test_combinations_table` writes it."""

from __future__ import annotations

from collections.abc import Iterator

from oumi_plugins.strategies.combinations import rows
from tests.conftest import ROOT

FILE = ROOT / "docs/combinations.md"
STRATEGIES = ("single", "ddp", "fsdp", "ZERO_0", "ZERO_1", "ZERO_2", "ZERO_3")
INTRODUCTION = """\
# What goes together

Each cell is a run of two steps on the CPU, in two processes except for `single`, with the losses of one process; or a
refusal in the dry run, before weights are read. There is no third outcome:
`pytest --exhaustive tests/strategies/test_combinations.py` tries every cell. `oumi plugins show fsdp` prints the column of
a strategy with its reasons. Things of several axes together, drawn at random, are tried in the same way
(`test_combinations_of_several.py`); one that does not go with another is refused in the dry run too.

- **yes**: trains.
- a number: is refused, for the reason of that number below.
- **GPU**: is refused where there is no GPU, and was never tried on one.
"""


def table() -> str:
    """Return the document."""
    return "\n".join([INTRODUCTION, *_lines()]) + "\n"


def _lines() -> Iterator[str]:
    reasons: dict[str, int] = {}
    for axis in dict.fromkeys(row.axis for row in rows()):
        yield f"## {axis.capitalize()}\n"
        yield f"| {axis} | in YAML | {' | '.join(STRATEGIES)} |"
        yield "|---|---|" + "---|" * len(STRATEGIES)
        for row in (row for row in rows() if row.axis == axis):
            cells = []
            for strategy in STRATEGIES:
                reason = row.refused.get(strategy, "")
                number = reasons.setdefault(reason, len(reasons) + 1) if reason else 0
                cells.append(str(number) if reason else "GPU" if row.needs_gpu else "yes")
            yaml = "; ".join(f"`{setting}`" for setting in row.settings)
            yield f"| {row.name} | {yaml} | {' | '.join(cells)} |"
        yield ""
    yield "## Reasons\n"
    yield from (f"{number}. {reason[0].upper()}{reason[1:]}" for reason, number in reasons.items())


def test_the_document_is_the_table() -> None:
    assert FILE.read_text() == table()


if __name__ == "__main__":
    FILE.write_text(table())
