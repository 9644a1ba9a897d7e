"""Terms and their definitions as questions and answers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oumi_kernel import DataError


def glossary(dataset_path: str, *, question: str = "What is {term}?") -> Iterator[dict[str, Any]]:
    """Read `term: definition` lines as conversations of one question and one answer."""
    for number, line in enumerate(Path(dataset_path).read_text(encoding="utf-8").splitlines(), 1):
        term, colon, definition = line.partition(":")
        if not colon:
            raise DataError(f"{dataset_path}:{number}: expected 'term: definition', got {line!r}.")
        yield {
            "messages": [
                {"role": "user", "content": question.format(term=term.strip())},
                {"role": "assistant", "content": definition.strip()},
            ]
        }
