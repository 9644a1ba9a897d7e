"""The model that a run leaves: written beside, then moved.

What opens an older model or adapter goes first and what opens the new one comes last, so that a folder in which only
some files were moved does not open as either.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oumi_kernel.adapters import base_of
from oumi_kernel.config.peft import PeftSaveMode
from oumi_kernel.contracts import Session
from oumi_kernel.disk import cannot_write, require_space, sync
from oumi_kernel.errors import CheckpointError
from oumi_kernel.merging import base_alone, complete

CONFIGS = ("config.json", "adapter_config.json")
"""Without one of them nothing opens a folder as a model, or as an adapter of one."""
WEIGHTS = ("model*.safetensors*", "adapter_model*.safetensors")
"""Files of weights. Of an earlier model or adapter they are deleted, as readers would take them."""


def save_final_model(session: Session) -> None:
    """Write the trained model into the output folder.

    Raises:
        CheckpointError: It cannot be written; a model that was there before is left as it was.
    """
    run, model, kernel = session.run, session.prepared.model, session.kernel
    target, beside = run.output_dir / "the model", run.output_dir / ".tmp-model"
    mode = run.config.peft.peft_save_mode if kernel.has_adapter else PeftSaveMode.ADAPTER_ONLY
    own, base = _bytes_needed(session, mode)
    if run.world.is_main:
        shutil.rmtree(beside, ignore_errors=True)
        require_space(target, own)
    try:
        with _explained(target, own):
            beside.mkdir(parents=True, exist_ok=True)
            state = lambda: session.strategy.full_state(model, trained=kernel.has_adapter)  # noqa: E731
            kernel.save_model(model, state, session.tokenizer, beside, run)
        if run.world.is_main:
            with _adapter_kept(beside, run.output_dir, mode):
                require_space(target, base)
                with _explained(target, base):
                    complete(kernel, run, session.tokenizer, beside, mode)
            with _explained(target, own + base):
                _move(beside, run.output_dir)
    finally:
        if run.world.is_main:
            shutil.rmtree(beside, ignore_errors=True)


def _bytes_needed(session: Session, mode: PeftSaveMode) -> tuple[int, int]:
    """Return the bytes of what trained, the whole model or an adapter, and of a base that is read again and saved."""
    run, parameters = session.run, list(session.prepared.model.parameters())
    if not session.kernel.has_adapter:
        return _bytes(parameters), 0
    adapter = _bytes(parameter for parameter in parameters if parameter.requires_grad)
    if mode is PeftSaveMode.ADAPTER_ONLY:
        return adapter, 0
    loader, alone = base_alone(session.kernel, run, base_of(run), run.config.model.model_revision)
    base = loader.build_skeleton(session.tokenizer, {}, alone)
    return adapter, _bytes(base.parameters() if base is not None else parameters)


def _bytes(parameters: Iterable[Any]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


@contextmanager
def _explained(target: Path, needed: int) -> Generator[None]:
    """Say of what cannot be written how much room it needs."""
    try:
        yield
    except (OSError, CheckpointError) as error:
        raise cannot_write(target, needed, error) from error


@contextmanager
def _adapter_kept(beside: Path, target: Path, mode: PeftSaveMode) -> Generator[None]:
    """Leave the adapter alone where it cannot be saved in the way that was asked for: training is not lost."""
    try:
        yield
    except Exception as error:
        if mode is not PeftSaveMode.ADAPTER_ONLY:
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
