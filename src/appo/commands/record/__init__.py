"""What a run was started with, in one file, and starting it again."""
