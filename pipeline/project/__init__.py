"""A new project: what a data set holds, and the folder of a run on it."""
