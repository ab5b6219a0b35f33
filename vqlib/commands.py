"""What the commands (`vqlib`, training, scorecard) share: errors and Ctrl-C in words, and tables for a terminal."""

import contextlib
import sys

from vqlib import sources


@contextlib.contextmanager
def in_words(stopped, *kinds):
    """End the process with one line of words, not a traceback, after an error that says what to do, and after Ctrl-C.

    stopped: what to say after Ctrl-C, unless the KeyboardInterrupt was raised with words that have been printed.
    kinds: further kinds of errors that say what to do, where they are raised.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not interrupt.args:
            print(f"\n{stopped}", file=sys.stderr)  # a bar may stand on the line
        sys.exit(130)  # as a shell expects of what Ctrl-C ended
    except (OSError, ValueError, MemoryError, FloatingPointError, *kinds) as error:
        sys.exit(f"error: {error}".replace(sources.OR_MINI, "Or use the embedded mini set: --mini."))


def aligned(rows):
    """Rows of cells as lines of text: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)
