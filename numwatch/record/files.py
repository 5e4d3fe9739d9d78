"""Files of a record as they may be read: the record's own, and no larger than there is room for.

A stranger may have made the record, so nothing in it leads out of it: links are not followed.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

MIB = 1 << 20


def check_own(path: Path) -> None:
    """Refuses what is no plain file: a link, which may lead anywhere, or a pipe, which never ends.

    Raises:
        OSError: It is something else, or there is none.
    """
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "it is a link, and links are not followed: copy what it names")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no plain file")


def is_own_folder(path: Path) -> bool:
    """Whether a folder is there, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def read_at_most(path: Path, limit: int) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: It can't be read, is no plain file, or has more bytes than the limit.
    """
    check_own(path)
    pieces, size = [], 0
    with path.open("rb") as file:
        while piece := file.read(MIB):  # Python makes room for all that it is asked for
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise OSError(errno.EFBIG, f"it has more than {limit // MIB} MiB")
    return b"".join(pieces)


def open_new(path: Path) -> BinaryIO:
    """Opens a file for writing that this call makes.

    What stands there already goes: a killed process left it, or it is a link that someone planted.

    Raises:
        OSError: The file can't be made.
    """
    path.unlink(missing_ok=True)
    return path.open("xb")


def lines_of(path: Path, longest: int) -> Iterator[bytes | None]:
    """Yields a file's lines without their ends; None for one that is longer than the limit.

    Raises:
        OSError: It can't be read or is no plain file.
    """
    check_own(path)
    with path.open("rb") as file:
        while line := file.readline(longest + 1):
            whole = line.endswith(b"\n") or len(line) <= longest
            yield line.rstrip(b"\r\n") if whole else None
            while not whole:
                rest = file.readline(longest)
                whole = rest.endswith(b"\n") or not rest
