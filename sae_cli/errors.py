"""Errors that are the user's to mend: one clear line, exit code 2."""

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that names the key or file and the fix."""

    def __init__(self, message: str) -> None:
        # What it quotes may hold line ends, or codes that a terminal obeys.
        super().__init__("".join(one if one.isprintable() else " " for one in message))


_FULL = "no space left on the disk: free some, then the same command goes on where it stopped"
_CLOSED = "it may not be written or read: change that, or set runs_dir, cache.dir or --out to another folder"
_TOO_MANY = "too many open files: raise the limit (`ulimit -n 4096`), then the same command goes on where it stopped"
_FIXES = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL, errno.EMFILE: _TOO_MANY, errno.ENFILE: _TOO_MANY}
_FIXES |= {errno.ENAMETOOLONG: "no file can have so long a name", errno.ELOOP: "its links lead round in a circle"}
_FIXES |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _CLOSED)


def of_system(error: BaseException) -> str:
    """Return the line for an error of the system that people can mend, such as a full disk; "" for any other."""
    if not isinstance(error, OSError) or error.errno not in _FIXES:
        return ""
    return f"{error.filename or 'a file'}: {_FIXES[error.errno]} ({error.strerror})"


def suggest(word: str, options: Iterable[str], count: int = 3) -> str:
    """Return ` Did you mean ...?` for the options nearest to `word`, or an empty string.

    Compares whole names and their last dotted component, so `train.lrr` finds `train.lr`.
    """
    options = list(options)
    near = difflib.get_close_matches(word, options, count, 0.6)
    last = word.rsplit(".", 1)[-1]
    tails = {option.rsplit(".", 1)[-1]: option for option in reversed(options)}
    for tail in difflib.get_close_matches(last, list(tails), count, 0.7):
        if tails[tail] not in near:
            near.append(tails[tail])
    return f" Did you mean {' or '.join(near[:count])}?" if near else ""
