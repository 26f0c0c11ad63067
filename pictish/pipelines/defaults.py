"""How pictures are drawn unless a user says otherwise; commands read it without loading a model.

Chosen by `pictish evaluate generation` and `editing` on the starter (docs/log.md).
"""

TEXT_SCALE = 2.0
"""Guidance by words; 1 adds nothing."""
IMAGE_SCALE = 1.5
"""Guidance by the pictures of a prompt."""
TEMPERATURE = 0.5
"""Of the draws of codes."""
