"""Stages `judge` and `panel`: a score for every proposal, and all scores in one table with their consensus."""
