"""Entry point of `python -m mrg`."""

from mrg.cli import main

if __name__ == "__main__":
    main()
