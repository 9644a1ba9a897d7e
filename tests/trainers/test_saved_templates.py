"""What a run saves gives the ids that it was trained with, to anybody who opens the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from oumi_plugins.trainers._conversations import Renderer
from tests.trainers.conftest import Train
from tests.trainers.marking import ALL, TEMPLATES, marked
from tests.trainers.test_published_templates import CHAT, REASONING, SYSTEM, THINK, TOOL, TWO_CALLS

GOLDEN: list[dict[str, Any]] = [
    {"messages": CHAT},
    {"messages": SYSTEM},
    {"messages": THINK},
    {"messages": REASONING},
    {"messages": TWO_CALLS, "tools": [TOOL]},
]
SHIPPED = "chat_ml"
DATED = str(TEMPLATES / "llama3_1.jinja")
OWN = str(TEMPLATES / "qwen3.jinja")


class Seen:
    """The rows that went into training, as the renderer gave them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[tuple[dict[str, Any], list[int], list[bool]]] = []
        real = Renderer.batch

        def batch(renderer: Renderer, rows: Any, places: Any) -> Any:
            results = real(renderer, rows, places)
            self.rows += [(dict(row), *result) for row, result in zip(rows, results, strict=True)]
            return results

        monkeypatch.setattr(Renderer, "batch", batch)


@pytest.mark.parametrize(
    ("flags", "variables", "rows"),
    [
        ((), {}, GOLDEN[:2]),
        (("--model.chat_template", SHIPPED), {}, GOLDEN[:3]),
        (("--model.chat_template", OWN), {}, GOLDEN),
        (
            ("--model.chat_template", DATED, "--model.chat_template_kwargs.date_string", "1 Jan 2030"),
            {"date_string": "1 Jan 2030"},
            GOLDEN[:3],
        ),
    ],
    ids=["the model's own", "shipped", "a file", "a file and variables"],
)
def test_the_saved_tokenizer_gives_the_ids_that_were_trained(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    variables: dict[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    seen = Seen(monkeypatch)
    data = tmp_path / "golden.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    run = train("--training.max_steps=1", f"--data.train.datasets[0].dataset_path={data}", *flags)
    saved = AutoTokenizer.from_pretrained(run.folder)
    assert len(seen.rows) == len(rows)
    for row, ids, _ in seen.rows:
        tools = row.get("tools")
        again = saved.apply_chat_template(row["messages"], tools=tools, tokenize=True, return_dict=False, **variables)
        assert again == ids
    with_turns = marked(saved, CHAT, ALL, variables=variables)
    assert with_turns.count("«") == 2
