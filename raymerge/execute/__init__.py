"""Executors: run a callable over tasks, in this process or on Ray. They know nothing of merging."""
