"""What lies on disk: the data contract, and the only code that opens Parquet or Zarr."""
