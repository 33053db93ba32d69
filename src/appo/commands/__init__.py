"""What a user types: one module or folder a command."""
