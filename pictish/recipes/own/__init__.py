"""A model of one's own pictures: what `pictish train model` plans, measures and reports."""
