"""Stages `judge` and `panel`: scores of every proposal, and one table of all scores with the consensus scores."""
