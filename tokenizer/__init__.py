"""Images to a variable number of discrete codes, after LaVIT's dynamic tokenizer (arXiv 2309.04669)."""
