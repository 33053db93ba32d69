"""vLLM servers elsewhere, spoken to over HTTP."""
