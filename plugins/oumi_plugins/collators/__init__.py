"""Family collators: examples into batches."""
