"""Stage `audit`: how far a judge and a pair set can be believed."""
