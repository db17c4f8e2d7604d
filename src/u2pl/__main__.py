"""``python -m u2pl``: the commands, where the script ``u2pl`` is not on the path."""

from u2pl.cli import main

if __name__ == "__main__":
    main()
