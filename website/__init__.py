"""What makes the documentation site beside the pages of ``docs/``."""
