"""Stages `judge` and `panel`: a score for every proposal, and scores combined."""
