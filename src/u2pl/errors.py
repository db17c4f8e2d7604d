"""The one exception that a user's mistake may raise."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: the message says what was expected, what came, and what to do.

    The command line prints the message alone and exits with ``exit_code``:
    1 where the work failed (a missing file, a bad mask), 2 where the request itself
    was malformed (an unknown setting).
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to ``name``, or an empty string.

    >>> nearest_name("learning_rat", ["learning_rate", "steps"])
    " Did you mean 'learning_rate'?"
    >>> nearest_name("zzz", ["learning_rate"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
