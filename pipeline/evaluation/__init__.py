"""Stages `evaluate` and `validate`: predictions of the base and of students, and their metrics."""
