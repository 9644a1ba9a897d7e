"""Runs of the real product with an adapter on the tiny model, and what they leave, opened by the library alone."""

from tests.trainers.conftest import train

__all__ = ["train"]
