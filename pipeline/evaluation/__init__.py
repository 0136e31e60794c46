"""Stage `evaluate`: what a model predicts on test cases, and how good that is."""
