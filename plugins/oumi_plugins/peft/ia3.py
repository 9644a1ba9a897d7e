"""(IA)^3."""

from __future__ import annotations

from oumi_plugins.peft._method import Method


class IA3(Method):
    """(IA)^3 (arXiv 2205.05638): a vector that scales each output of attention, and each input of a feed-forward."""

    module = "peft.tuners.ia3.config"
    config_class = "IA3Config"
