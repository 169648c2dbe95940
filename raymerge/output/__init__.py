"""What surrounds the shards: config.json, tokenizer, model card, index, manifest; checking and publishing it all."""
