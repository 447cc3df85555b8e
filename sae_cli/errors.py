"""Errors that are the user's to mend: one clear line, exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that names the key or file and the fix."""

    def __init__(self, message: str) -> None:
        # What it quotes may hold line ends, or codes that a terminal obeys.
        super().__init__("".join(one if one.isprintable() else " " for one in message))


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
