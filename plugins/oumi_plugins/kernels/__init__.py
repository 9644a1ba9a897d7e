"""Kernels: faster parts that are put into a model."""
