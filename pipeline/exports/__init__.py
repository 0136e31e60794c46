"""A trained model on new images (`predict`) and in forms for others (`export`)."""
