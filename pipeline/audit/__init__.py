"""Stage `audit`: reliability of judges and pair sets, measured on validation cases."""
