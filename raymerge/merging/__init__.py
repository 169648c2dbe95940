"""Running one shard task: read ranges, merge blocks, stream one output file."""
