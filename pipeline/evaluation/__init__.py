"""Stage `evaluate`: predictions of the base and of students on test cases, and their metrics."""
