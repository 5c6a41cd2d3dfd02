"""Model and batches → weights."""
