"""The data contract, and the only code that opens the Parquet and Zarr files of the contract."""
