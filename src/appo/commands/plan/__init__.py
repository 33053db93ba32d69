"""How much memory a run takes on every GPU, before it starts."""
