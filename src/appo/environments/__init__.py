"""Generated worlds: knowledge, questions about it, and conversations that answer them."""
