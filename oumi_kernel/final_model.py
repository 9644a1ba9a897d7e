"""The model that a run leaves: written beside, then moved.

What opens an older model or adapter goes first and what opens the new one comes last, so that a folder in which only
some files were moved does not open as either.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from oumi_kernel.config.peft import PeftSaveMode
from oumi_kernel.contracts import Session
from oumi_kernel.disk import cannot_write, require_space, sync
from oumi_kernel.errors import CheckpointError
from oumi_kernel.merging import complete

CONFIGS = ("config.json", "adapter_config.json")
"""Without one of them nothing opens a folder as a model, or as an adapter of one."""
WEIGHTS = ("model*.safetensors*", "adapter_model*.safetensors")
"""Files of weights. Of an earlier model or adapter they are deleted, as readers would take them."""


def save_final_model(session: Session) -> None:
    """Write the trained model into the output folder.

    Raises:
        CheckpointError: It cannot be written; a model that was there before is left as it was.
    """
    run, model = session.run, session.prepared.model
    beside = run.output_dir / ".tmp-model"
    mode = run.config.peft.peft_save_mode if session.kernel.has_adapter else PeftSaveMode.ADAPTER_ONLY
    written = (p for p in model.parameters() if p.requires_grad or mode is not PeftSaveMode.ADAPTER_ONLY)
    needed = sum(parameter.numel() * parameter.element_size() for parameter in written)
    if run.world.is_main:
        shutil.rmtree(beside, ignore_errors=True)
        require_space(run.output_dir / "the model", needed)
    try:
        beside.mkdir(parents=True, exist_ok=True)
        state = lambda: session.strategy.full_state(model)  # noqa: E731
        session.kernel.save_model(model, state, session.tokenizer, beside, run)
        if run.world.is_main:
            with _adapter_kept(beside, run.output_dir):
                complete(session.kernel, run, session.tokenizer, beside, mode)
            _move(beside, run.output_dir)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise cannot_write(run.output_dir / "the model", needed, error) from error


@contextmanager
def _adapter_kept(beside: Path, target: Path) -> Generator[None]:
    """Leave the adapter alone where it cannot be saved in the way that was asked for: training is not lost."""
    try:
        yield
    except Exception as error:
        _move(beside, target)
        error.add_note(f"The adapter alone was saved: {target}")
        raise


def _move(beside: Path, target: Path) -> None:
    files = sorted(path for path in beside.rglob("*") if path.is_file())
    for file in files:
        sync(file)
    for name in CONFIGS:
        (target / name).unlink(missing_ok=True)
    for file in sorted(files, key=lambda file: file.name in CONFIGS):
        place = target / file.relative_to(beside)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    written = {file.name for file in files}
    for left in (left for pattern in WEIGHTS for left in target.glob(pattern)):
        if left.name not in written:
            left.unlink()
    sync(target)
    shutil.rmtree(beside)
