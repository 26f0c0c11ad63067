"""Numbers and images that say how good a model is; may import every other part."""
