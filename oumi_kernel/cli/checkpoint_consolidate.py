"""`oumi checkpoint consolidate`: a checkpoint in parts as a whole model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def consolidate(
    checkpoint: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(show_default=False)] = None,
) -> None:
    """Write the weights of a checkpoint that processes wrote in parts as one model, which `from_pretrained` opens.

    Args:
        checkpoint: The folder of the checkpoint, in that of its run.
        output: Where to write the model; CHECKPOINT-consolidated unless given.

    Raises:
        OumiError: What is wrong, with its exit code; then nothing was written.
    """
    from oumi_kernel.parts import consolidate as write_whole

    written = write_whole(checkpoint, output)
    sys.stdout.write(f"written     {written}\n")
