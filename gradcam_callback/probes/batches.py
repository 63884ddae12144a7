"""What a batch holds: its images, and what may be its labels.

Axes: `N` samples of the batch, `C` image channels, `H W` the image in pixels, `L` classes.

Note [Which entry has the labels]

A key that the user gives is taken, or refused. Without one it is what goes by a usual name, or, in a tuple, what stands
beside the images and could be class indices. Where several could be, those that only count the samples are left out,
and by custom the first one of the rest is taken. Whatever is not beyond doubt becomes a notice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from gradcam_callback.engine.batch_rows import entries_of, leaves
from gradcam_callback.engine.inputs import IMAGE_NAMES
from gradcam_callback.errors import BadInputError

Key = int | str
"""A key of a mapping, the name of an attribute, or a position; several of them with dots between reach further in."""

IMAGE_KEY = "image"
LABEL_KEY = "label"
LABEL_NAMES = (LABEL_KEY, "labels", "target", "targets", "y", "mask", "masks")


Images = Tensor | Sequence[Tensor]
"""`(N, C, H, W)`, `(N, H, W)`, or a list of `(C, H, W)`; volumes are `(N, C, D, H, W)`, signals `(N, C, W)`."""


def locate_images(
    batch: Any, key: Key = IMAGE_KEY, given: Sequence[Key] = (), *, by_option: bool = False
) -> tuple[Key, Images]:
    """Where a batch has its images, and they themselves, as it has them.

    Args:
        batch: Any.
        key: Where they are; by default under a usual name, or first in a tuple.
        given: What forward gets. Without a key, images are among that, if it is known to be in the batch.
        by_option: Whether the user has said so, with `inputs`.

    Raises:
        ValueError: There are none.
    """
    if isinstance(batch, Tensor) or (key == IMAGE_KEY and _are_images_of_sizes(batch)):
        return key, batch
    found = _entries(batch, (*IMAGE_NAMES, 0) if key == IMAGE_KEY else (key,))
    place, images = next(iter(found.items()), (key, None))
    others = _entries(batch, given) if key == IMAGE_KEY else {}
    others = {other: entry for other, entry in others.items() if _are_images(entry, axes=(4, 5))}
    if others and not any(entry is images for entry in others.values()):
        place, images = next(iter(others.items()))
    if _are_images(images, axes=(3, 4, 5)):
        return place, cast(Images, images)
    if not found:  # so that these say what is there
        for place in given if by_option and key == IMAGE_KEY else ():
            find_entry(batch, "inputs", [place])
        find_entry(batch, "image_key", [key])
    raise BadInputError(
        f"The probes have to be images, a tensor (N, C, H, W) or (N, H, W); the batch has {kind_of(images)}. "
        "Say with image_key where the images are, or use TensorProbes."
    )


def has_names(batch: Any) -> bool:
    """Whether the entries of a batch have names, and not positions alone."""
    return not isinstance(batch, (tuple, list)) or hasattr(batch, "_fields")


def has_one_image_entry(batch: Any) -> bool:
    """Whether a batch holds images in one of its own entries, and nowhere else."""
    direct = [entry for entry in entries_of(batch) or () if _are_images(entry, axes=(4, 5))]
    tensors = [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim in (4, 5)]
    return len(direct) == 1 and len(tensors) == isinstance(direct[0], Tensor)


def _are_images(entry: Any, axes: Sequence[int]) -> bool:
    if isinstance(entry, Tensor):
        return entry.ndim in axes
    is_list = isinstance(entry, (list, tuple)) and len(entry) > 0
    return is_list and all(isinstance(image, Tensor) and image.ndim == 3 for image in entry)


def _are_images_of_sizes(batch: Any) -> bool:
    """Whether a batch is itself a list of images, which is beyond doubt if they differ in height or width alone."""
    if not isinstance(batch, (tuple, list)) or not all(isinstance(one, Tensor) and one.ndim == 3 for one in batch):
        return False
    return len({one.shape[0] for one in batch}) == 1 and len({one.shape for one in batch}) > 1


def find_entry(batch: Any, option: str, keys: Sequence[Key]) -> Any:
    """What a batch has under the first of these keys that it knows; ValueError: it knows none."""
    found = _entries(batch, keys)
    if not found:
        raise BadInputError(
            f"{option}={keys[0]!r} is not in the batch: {describe_contents(batch)}. Say with {option} where it is; "
            "a key such as `inputs.image` reaches further in."
        )
    return next(iter(found.values()))


def choose_label_key(batch: Any, image_key: Key, images: Any, positions: Sequence[int]) -> tuple[Key | None, str]:
    """Which entry has the labels (None: there are none), and a notice where that is not beyond doubt, else "".

    See Note [Which entry has the labels]. There is at least one position, that of a sample.
    """
    beside = str(image_key).rpartition(".")[0]
    candidates = _entries(batch, (*LABEL_NAMES, *(f"{beside}.{name}" for name in LABEL_NAMES if beside)))
    if not candidates and isinstance(batch, (tuple, list)):
        nested = str(image_key).partition(".")[0] if "." in str(image_key) else None
        candidates = {k: entry for k, entry in enumerate(batch) if entry is not images and str(k) != nested}
    if not candidates:
        where = f"There is no {LABEL_KEY!r} in the batch: {describe_contents(batch)}. The probes have no labels; if "
        return None, "" if isinstance(batch, Tensor) else where + "there are some, say where with label_key."
    first = next(iter(candidates))
    possible = {k: c for k, entry in candidates.items() if (c := as_column(entry, len(positions))) is not None}
    if len(possible) > 1:  # only then is the device waited for
        possible = {k: column for k, column in possible.items() if class_indices(column) is not None} or possible
        possible = {k: column for k, column in possible.items() if not _counts(column, positions)} or possible
    key = next(iter(possible), first)
    if key == first and len(possible) < 2:
        return key, ""
    others = ", ".join(repr(other) for other in candidates if other != key)
    return key, f"The labels are taken from {key!r} of the batch, not from {others}; say with label_key which is right."


def as_column(entry: Any, count: int) -> Tensor | None:
    """Labels as a tensor, `(N,)` or `(N, L)`, without a look at the numbers; None for what can have no classes."""
    if isinstance(entry, (list, tuple, np.ndarray)):
        try:
            entry = default_collate(list(entry))
        except (TypeError, RuntimeError, ValueError, IndexError):
            return None
    if not isinstance(entry, Tensor) or entry.ndim not in (1, 2) or len(entry) != count or entry.is_complex():
        return None
    column = entry.detach().as_subclass(Tensor)
    return column.squeeze(1) if column.ndim == 2 and column.shape[1] == 1 else column


def class_indices(column: Tensor) -> Tensor | None:
    """Labels as class indices `(N,)`, int64 on the CPU.

    Whole numbers are indices. Rows of non-negative numbers that sum to 1 are one-hot or soft, and give their largest
    entry. Floating-point numbers that are all 0 or 1 are the two classes of a single logit.

    Args:
        column: `(N,)` or `(N, L)`.

    Returns:
        None for anything else: several labels an image, regression targets.
    """
    column = column.cpu()
    if column.ndim == 2:
        sums = column.double().sum(dim=1)
        one_hot = bool((column >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
        return column.double().argmax(dim=1) if one_hot else None
    if column.is_floating_point() and not bool(((column == 0) | (column == 1)).all()):
        return None
    return column.long().clone() if bool((column >= 0).all()) else None


def _counts(column: Tensor, positions: Sequence[int]) -> bool:
    """Whether the numbers count the samples: they are the positions, or grow by the same step."""
    numbers = column.tolist() if column.ndim == 1 else []
    steps = {after - before for before, after in pairwise(numbers)}
    return numbers == list(positions) or (len(numbers) > 2 and len(steps) == 1 and min(steps) > 0)


def _entries(batch: Any, keys: Sequence[Key]) -> dict[Key, Any]:
    """What the batch has of these keys."""
    found = {}
    for key in keys:
        with suppress(LookupError):
            found[key] = _entry(batch, key)
    return found


def _entry(batch: Any, key: Key) -> Any:
    if isinstance(batch, Mapping):
        if key in batch:  # asking first adds nothing to a defaultdict
            return batch[key]
    elif isinstance(batch, (tuple, list)):
        if isinstance(key, int) or key.lstrip("-").isdecimal():
            return batch[int(key)]
        if key in getattr(batch, "_fields", ()):
            return getattr(batch, key)
    elif isinstance(key, str) and hasattr(batch, key):
        return getattr(batch, key)
    head, dot, rest = str(key).partition(".")
    if not dot:
        raise LookupError(key)
    return _entry(_entry(batch, head), rest)


def describe_contents(batch: Any) -> str:
    """What a batch holds, for a message."""
    if isinstance(batch, Mapping):
        return f"the batch has the keys {', '.join(map(repr, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"the batch is a {type(batch).__name__} with {len(batch)} entries, found by position from 0"
    names = ", ".join(map(repr, getattr(batch, "__dict__", ()))) or "none"
    return f"the batch is of type {type(batch).__name__}, with the attributes {names}"


def kind_of(value: Any) -> str:
    """What a value is, for a message: a tensor by its shape, a list by its first entry, anything small as it is."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, (list, tuple)) and value:
        return f"a {type(value).__name__} of {len(value)}, the first of them {kind_of(value[0])}"
    if isinstance(value, (str, int, float, list, tuple, type(None))):
        return f"{repr(value)[:60]} ({type(value).__name__})"
    return f"an object of type {type(value).__name__}"
