"""The links of a preference loss."""
