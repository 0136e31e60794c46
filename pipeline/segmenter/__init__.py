"""Stage `base`: segmentation networks: building, training, inference on cases of any size, and weights on disk."""
