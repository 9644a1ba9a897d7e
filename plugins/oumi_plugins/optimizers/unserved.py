"""Keys that some optimizers cannot serve."""

from __future__ import annotations

NOT_IN_PARTS = {"fsdp.enable_fsdp": "it needs whole weights, not parts; adamw, adam, muon and sgd do with parts."}
"""For optimizers that see more of a weight than one number at a time, or hand memory to a library's kernels."""
