"""The mining strategies."""
