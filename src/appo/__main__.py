"""``python -m appo`` is the console script ``appo``."""

from appo.cli import main

if __name__ == "__main__":
    main()
