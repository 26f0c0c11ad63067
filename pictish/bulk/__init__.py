"""Images or raw shards to tokens, by one process, many, or a Ray cluster."""
