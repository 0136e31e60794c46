"""Stages `predict` and `export`: masks of a trained model on new images, and a trained model in forms for others."""
