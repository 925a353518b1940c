"""Backends: what answers a prompt."""
