"""`oumi merge`: the adapter of a run into the model that it was trained on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def merge(
    run: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(show_default=False)] = None,
    base: Annotated[str | None, Parameter(show_default=False)] = None,
) -> None:
    """Merge an adapter into its base, in the base's own precision, and check that both compute the same.

    Args:
        run: The folder of a finished run, of a checkpoint, or of any adapter.
        output: Where to write the merged model; RUN-merged unless given.
        base: The base model, a folder or a hub id, where it is not found under the name that the adapter knows.

    Raises:
        OumiError: What is wrong, with its exit code; then nothing was written.
    """
    from oumi_kernel.merging import merge as merge_into_base

    adapter, merged, written = merge_into_base(run, output, base)
    tested = f"{merged.prompts} prompts, {merged.tokens} tokens"
    lines = [
        ("adapter", f"{adapter.folder} ({adapter.method})"),
        ("base", f"{adapter.base} ({merged.dtype})"),
        ("effect", f"the adapter moves logits by up to {merged.effect:.2g} ({tested})"),
        ("difference", f"merging moves them by up to {merged.difference:.2g}; {merged.tolerance:.2g} is allowed"),
    ]
    if merged.rounding is not None:
        rounding = f"with rounding to {merged.dtype} {merged.rounding:.2g}; {merged.rounding_tolerance:.2g} is allowed"
        lines.append(("", rounding))
    lines.append(("written", str(written)))
    sys.stdout.write("".join(f"{name:<12}{text}\n" for name, text in lines))
