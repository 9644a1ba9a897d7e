"""LoHa."""

from __future__ import annotations

from oumi_plugins.peft._method import Method


class LoHa(Method):
    """LoHa (arXiv 2108.06098): the product, element by element, of two matrices of low rank."""

    module = "peft.tuners.loha.config"
    config_class = "LoHaConfig"
