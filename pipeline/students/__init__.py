"""Stage `train`: objectives, the training loop, and arms that need none."""
