"""Commands `predict` and `export`: masks of new images, and a trained model as files for other programs."""
