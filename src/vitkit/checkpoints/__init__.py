"""Weights in, weights out: vitkit's own bundle and the formats of others."""
