"""The report: one self-contained page with everything that a run measured."""
