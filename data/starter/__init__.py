"""The starter data set: emoji, clip art and stamps as captioned shards."""
