"""OFT."""

from __future__ import annotations

from oumi_plugins.peft._method import Method


class OFT(Method):
    """Orthogonal fine-tuning (arXiv 2306.07280): rotations of blocks of each matrix's inputs."""

    module = "peft.tuners.oft.config"
    config_class = "OFTConfig"
