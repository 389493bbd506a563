"""`python -m server` is `km`."""

from server.cli import main

if __name__ == "__main__":
    main()
