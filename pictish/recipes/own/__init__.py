"""A model of one's own images: what `pictish train model` plans, measures and reports."""
