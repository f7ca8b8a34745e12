"""``python -m freenergy`` is the command line."""

from freenergy.cli import main

if __name__ == "__main__":
    main()
