"""Tar shards: what is in them, by their headers alone."""
