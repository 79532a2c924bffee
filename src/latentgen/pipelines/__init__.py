"""Components put together: prompts and pictures in, pictures out."""
