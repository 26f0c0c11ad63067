"""The web page of `pictish ui`: static files on the API of `pictish serve`."""
