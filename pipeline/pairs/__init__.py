"""Stage `mine`: pairs of a chosen and a rejected proposal, with P(the order is right)."""
