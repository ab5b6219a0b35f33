"""The reader's files: where a path leads, and how a file is written so that nothing is ever lost or half written."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import filelock

REMEDY = "Make the folder writable, free some space, or name another place (path=, --out, or VQLIB_RUNS for all runs)"


def expand(path) -> Path:
    """The absolute path of what a reader names: from where they stand, with ``~`` for the home directory."""
    expanded = Path(os.path.expanduser(path))
    if expanded.parts[:1] == ("~",):
        raise FileNotFoundError(f"{path}: this user has no home directory. Give the path without ~")
    return expanded.absolute()


def check_writable(path):
    """Raise OSError, with the remedy, if nothing can be written there: better before an hour of work than after."""
    path = expand(path)
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder. Name a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise type(error)(f"cannot write {path}: {error}. {REMEDY}") from error


def replace_file(path, content: bytes):
    """Write a file, all or nothing.

    The new file is complete and on the disk before it replaces the old one. So a write that is killed, or fails with
    OSError, leaves the old one as it was.
    """
    path = expand(path).resolve()  # what a link leads to is replaced, not the link
    check_writable(path)
    try:
        if path.exists() and not path.is_file():  # such as /dev/null: nothing to lose there
            path.write_bytes(content)
            return
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=path.parent) as folder:
            temporary = os.path.join(folder, path.name)
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, temporary)
            os.replace(temporary, path)
    except OSError as error:
        raise type(error)(f"cannot save {path}: {error}. What stood there before is untouched. {REMEDY}") from error


@contextlib.contextmanager
def only_writer(path):
    """Within it this process (this thread of it) is the only one that writes ``path``, or else BlockingIOError.

    It may be nested. The lock is a hidden file beside ``path``, which is gone afterwards; if the process dies, the
    system lifts the lock. Raises OSError, with the remedy, if nothing can be written there.
    """
    path = expand(path)
    check_writable(path)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0, mode=0o666, is_singleton=True)
    outermost = not lock.is_locked
    try:
        lock.acquire()
    except (filelock.Timeout, PermissionError):  # the second: it is another user's
        remedy = "Wait until it has ended, or give this one another place (path=, --out, or VQLIB_RUNS for all runs)"
        raise BlockingIOError(f"another process is at work on {path}. {remedy}") from None
    except (OSError, NotImplementedError):  # a file system without locks: then there is none, but the work can be done
        outermost = False
    try:
        yield
    finally:
        if outermost:
            with contextlib.suppress(OSError):  # Windows removes it itself
                os.unlink(lock.lock_file)
        lock.release()
