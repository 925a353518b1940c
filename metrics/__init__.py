"""Metrics that are right for Bengali by construction. Importing this package imports no torch."""
