"""Evaluations of the starter data: words to images, edits, captions and questions, by one judge."""
