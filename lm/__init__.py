"""One sequence of text and image codes: what it is made of, how it is learned and how it is continued."""
