"""The nouns that every room uses: trajectories, batches, registries, seeds."""
