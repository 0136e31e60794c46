"""Shared parts of learned judges: training masks with true Dice, corruptions, features and networks."""
