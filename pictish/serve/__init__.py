"""An HTTP server with the shapes of OpenAI's API: images drawn, edited and described by one model."""
