"""`python -m docvit`."""

from docvit.cli import main

if __name__ == "__main__":
    main()
