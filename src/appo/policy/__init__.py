"""The language model that is trained: loading, text, log-probs, adapters, and what a step of it takes."""
