"""What trains an adapter: one file for each way."""
