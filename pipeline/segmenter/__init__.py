"""Stage `base`: networks are built, trained, run on cases of any size and kept on disk."""
