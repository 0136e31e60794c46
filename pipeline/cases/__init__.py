"""Stage `prepare`: raw data sets become cases on one working grid, split by patient."""
