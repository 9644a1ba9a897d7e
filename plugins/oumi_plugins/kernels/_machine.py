"""Whether kernels written in Triton run on this machine; asked before the library that holds them is imported."""

from __future__ import annotations

from triton import knobs
from triton.backends import backends

from oumi_kernel import ConfigError, Problem
from oumi_kernel.contracts import Run


def check_machine(run: Run) -> None:
    """Refuse a machine for which Triton compiles nothing: the first forward pass would fail there.

    Raises:
        ConfigError: It has no such device, and Triton's interpreter is not asked for either.
    """
    if is_interpreted() or any(backend.driver.is_active() for backend in backends.values()):
        return
    message = "Liger's kernels need a GPU that Triton compiles for; this machine has none."
    hint = "Switch it off on this machine: the model learns the same without it."
    raise ConfigError(Problem(code="not-served", path=key_of(run), message=message, hint=hint))


def is_interpreted() -> bool:
    """Whether kernels were defined for Triton's interpreter, which runs them on a CPU (TRITON_INTERPRET=1)."""
    return bool(knobs.runtime.interpret)


def key_of(run: Run) -> str:
    """Return the key that switched the kernels on."""
    return "model.enable_liger_kernel" if run.config.model.enable_liger_kernel else "model.kernels.liger"
