"""Parts of a training loop as functions; the loops themselves are tokenizer/train.py and decoder/train.py."""
