"""The engine: scheduler, KV blocks, device batches, model steps. It knows no Redis and no text."""
