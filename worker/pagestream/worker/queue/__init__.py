"""The queue process: claims jobs, runs them on an engine process, publishes their tokens."""
