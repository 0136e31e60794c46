"""Stage `prepare`: turns raw data sets into cases on a working grid, split by patient."""
