"""Lightning's parts of a run: the module, the data module, and the callbacks that feed them."""
