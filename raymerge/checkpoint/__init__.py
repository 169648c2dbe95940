"""Checkpoints from their headers, indexes and config.json alone; no weight byte is read."""
