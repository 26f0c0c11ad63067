"""An HTTP server with the shapes of OpenAI's API: pictures drawn, edited and described by one model."""
