"""The OpenAI-compatible engines behind /v1: asked, streamed, counted."""
