"""``python -m u2pl.cli``, which torchrun starts."""

from u2pl.cli import main

main()
