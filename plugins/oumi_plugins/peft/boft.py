"""BOFT."""

from __future__ import annotations

from oumi_plugins.peft._method import Method


class BOFT(Method):
    """Orthogonal fine-tuning by butterfly factors (arXiv 2311.06243)."""

    module = "peft.tuners.boft.config"
    config_class = "BOFTConfig"
