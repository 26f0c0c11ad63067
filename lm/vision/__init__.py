"""Images as a vision tower sees them: views, features, and rows among the embeddings of text."""
