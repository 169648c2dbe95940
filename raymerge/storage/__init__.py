"""Bytes in and out: local disks, S3, the Hugging Face hub, and whatever fsspec opens."""
