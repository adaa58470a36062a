"""The queue process: claims jobs, tokenizes, runs them on an engine process, publishes their tokens."""
