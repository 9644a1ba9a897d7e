"""LoKr."""

from __future__ import annotations

from oumi_plugins.peft._method import Method


class LoKr(Method):
    """LoKr (arXiv 2309.14859): the Kronecker product of two small matrices."""

    module = "peft.tuners.lokr.config"
    config_class = "LoKrConfig"
