"""What surrounds the shards: config.json, tokenizer, model card, index, manifest."""
