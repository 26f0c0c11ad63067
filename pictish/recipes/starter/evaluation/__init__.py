"""Evaluations of the starter data: words to pictures, edits, captions and questions, by one judge."""
