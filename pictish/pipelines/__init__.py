"""Objects for Python users that join trained parts: tokens in, images out."""
