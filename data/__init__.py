"""What flows between the parts and how it lies on disk: tokens, images, folders, shards, models.

Import from the modules (`from pictish.data.tokens import TokenizedImage`); none needs torch at import.
"""
