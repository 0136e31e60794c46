"""Stage `promote`: the student that may replace the base, chosen on validation cases, or none."""
