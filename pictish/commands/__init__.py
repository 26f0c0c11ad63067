"""One file a command; each imports torch and other heavy libraries inside its functions."""
