"""Stage `mine`: which proposal is preferred to which, and P(the order is right)."""
