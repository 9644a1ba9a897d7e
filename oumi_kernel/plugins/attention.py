"""What can be said of the name of an attention implementation without the library that knows them all."""

from __future__ import annotations

import difflib
import importlib.util

from oumi_kernel.config.vocabulary import ATTENTION
from oumi_kernel.errors import Problem

KEY = "model.attn_implementation"
HUB_KERNELS = "kernels"
"""The package that loads kernels from a hub, in the place of packages that are not installed too."""


def attention_problem(name: str | None, *, others: bool) -> Problem | None:
    """Return what is wrong with a name: `unknown-name`, or `missing-extra` for one that only lacks a package here.

    Args:
        name: The name; one with `/` is a repository of kernels on the hub.
        others: Whether plugins of other distributions are active, which may register names of their own: then an
            unknown name is left to the run.
    """
    if name is None:
        return None
    if "/" not in name and name not in ATTENTION:
        close = difflib.get_close_matches(name, ATTENTION, 3)
        near = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        hint = f"{near}Known: {', '.join(ATTENTION)}, kernels of the hub as OWNER/NAME, and what plugins register."
        message = f"no attention implementation is named '{name}'."
        return None if others else Problem(code="unknown-name", path=KEY, message=message, hint=hint)
    package, module = (HUB_KERNELS, HUB_KERNELS) if "/" in name else ATTENTION[name]
    if not module or any(importlib.util.find_spec(one) is not None for one in (module, HUB_KERNELS)):
        return None
    alternative = "" if package == HUB_KERNELS else f", or '{HUB_KERNELS}' to take it from the hub"
    message = f"'{name}' needs {module}, which is not installed."
    return Problem(code="missing-extra", path=KEY, message=message, hint=f"pip install '{package}'{alternative}")
