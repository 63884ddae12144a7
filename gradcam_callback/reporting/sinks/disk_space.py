"""Whether a disk has space for what is about to be written.

TensorBoard's writer thread dies at the first write that fails, and the next write of anyone, the user's included,
raises that error in the training loop. So space is made sure of before. What cannot be asked for is tried: free blocks
that a quota or a reservation keeps from this user look free to `statvfs`.
"""

from __future__ import annotations

import errno
import os
import tempfile

MARGIN = 1 << 20  # bytes that are left to the user's own writes

_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENODEV}


class NoSpaceError(OSError):
    """There is no space for what was to be written. It was not written."""


def ensure_space(folder: str, size: int, file_size: int | None = None) -> None:
    """Make sure that a folder has space for so many bytes and a margin, by reserving it for a moment.

    Args:
        folder: Where they are to be written; a URL is not looked at.
        size: How many bytes.
        file_size: How large the file is that they are to be appended to; None where they make a file of their own.

    Raises:
        NoSpaceError: There is no space, or the file would grow beyond the limit of this process.
        OSError: The folder is gone, or cannot be written to.
    """
    if "://" in folder:
        return
    limit, needed = _file_size_limit(), size + MARGIN
    if limit is not None and file_size is not None and file_size + needed > limit:
        raise NoSpaceError(errno.EFBIG, f"A file may not grow beyond {limit} bytes here")
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".gradcam-space-") as file:
            _reserve(file.fileno(), needed if limit is None else min(needed, limit))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(error.errno, os.strerror(error.errno)) from error
        raise


def _reserve(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:  # no such call on this system, or on this file system
        if isinstance(error, OSError) and error.errno not in _CANNOT_RESERVE:
            raise
        zeros = bytes(1 << 16)
        for start in range(0, size, len(zeros)):
            os.write(descriptor, zeros[: size - start])


def _file_size_limit() -> int | None:
    try:
        import resource
    except ImportError:  # on Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
