"""Images without codes: an output projector between a frozen language model and a generator."""
