"""The queue process: claims jobs, tokenizes, has an engine run them, publishes their tokens."""
