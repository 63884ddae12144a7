"""When memory runs out: how that is told from other errors."""

from __future__ import annotations

import torch

# The allocators of CPUs have no error of their own, and drivers and libraries fail in ways of theirs.
_SIGNS = ("allocate memory", "out of memory", "not enough memory", "status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, of the device or of the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)
