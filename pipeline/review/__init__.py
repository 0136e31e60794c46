"""Review: answers of people on pairs of masks."""
