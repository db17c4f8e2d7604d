"""The one exception that a user's mistake may raise, and how it spells what came."""

from __future__ import annotations

import difflib
import importlib
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any

import torch

_LONGEST = 4000  # characters of a message
_LONGEST_NAME = 200  # that a near one is looked for


class UserError(Exception):
    """Something the user can mend: the message says what was expected, what came, and what to do.

    The command line prints the message alone and exits with ``exit_code``:
    1 where the work failed (a missing file, a bad mask), 2 where the request itself
    was malformed (an unknown setting). The message is one printable line, whatever the names
    of files and classes in it; see :func:`printable`.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} … {message[-_LONGEST // 2 :]}"
        super().__init__(printable(message))
        self.exit_code = exit_code


def import_extra(name: str, missing: str) -> Any:
    """Import a module of an extra.

    Args:
        name: of the module.
        missing: what to say where it is not installed, and how to mend that.

    Raises:
        UserError: where it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(missing) from None


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is used up; torch has its own words on a CPU."""
    words = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def printable(text: str) -> str:
    r"""Return a text on one line, each character that does not print as its escape.

    So a name out of a file can neither break a line nor steer a terminal.

    >>> printable("a\n\x1b[31mb ✓")
    'a\\n\\x1b[31mb ✓'
    """
    if text.isprintable():
        return text
    escape = "unicode_escape"
    return "".join(c if c.isprintable() else c.encode(escape).decode("ascii") for c in text)


def is_clean(text: str) -> bool:
    r"""Return whether a name can stand in a line of a file: it has no control characters.

    Nor separators of lines, nor bytes of a file name that are no UTF-8.

    >>> is_clean("Straße 1"), is_clean("a\nb"), is_clean("\x1b[2J"), is_clean("\udcff")
    (True, False, False, False)
    """
    if text.isprintable():  # nearly every name is; of a million, to look at each letter takes long
        return True
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def shown(value: Any) -> str:
    """Return a value as Python writes it, shortened where it is long or deep.

    >>> shown({"crop": [64, "a" * 300]})[:24]
    "{'crop': [64, 'aaaaaaaaa"
    >>> shown(16**5000)
    'a number of 20001 bits'
    """
    return _SHORT.repr(value)


class _Short(reprlib.Repr):
    """Ends soon whatever it is given, also where a YAML file names one list a billion times."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = 6
        self.maxstring = self.maxother = 120

    def repr_int(self, x: int, level: int) -> str:
        """Python itself refuses to write numbers of many thousand digits."""
        bits = x.bit_length()
        return repr(x) if bits <= 256 else f"a number of {bits} bits"


_SHORT = _Short()


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to ``name``, or an empty string.

    >>> nearest_name("learning_rat", ["learning_rate", "steps"])
    " Did you mean 'learning_rate'?"
    >>> nearest_name("zzz", ["learning_rate"])
    ''
    """
    if len(name) > _LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
