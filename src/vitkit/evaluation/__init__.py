"""Evaluators: each takes features or a predict function and gives named floats."""
