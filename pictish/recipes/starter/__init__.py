"""The starter data set: emoji, icons, avatars, clip art and photographs as captioned shards."""
