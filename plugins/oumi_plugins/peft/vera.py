"""VeRA."""

from __future__ import annotations

from oumi_plugins.peft._method import Method


class Vera(Method):
    """VeRA (arXiv 2310.11454): two vectors for each matrix, between random matrices that all layers share."""

    module = "peft.tuners.vera.config"
    config_class = "VeraConfig"
