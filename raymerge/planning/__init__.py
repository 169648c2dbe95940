"""Planning: a recipe and its checkpoints to a `Plan`, pure, with every error found at once."""
