"""The embedded engine: a transformers model, sampled in batches with a cache of keys and values."""
