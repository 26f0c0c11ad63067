"""The shipped weights: one model folder each for the tokenizer and the preview decoder."""
