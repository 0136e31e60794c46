"""Stage `train`: objectives of students, the training loop, and arms without training."""
