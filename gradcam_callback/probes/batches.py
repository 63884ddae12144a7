"""What a loader gives: samples that can be asked for, batches in order, the images and labels in a batch. A leaf."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    default_collate,
)

from gradcam_callback.errors import BadInputError


def is_addressable(loader: Any) -> TypeGuard[DataLoader[Any]]:
    """Whether single samples can be fetched by their index and collated by the loader's own function."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
        and hasattr(loader.dataset, "__len__")
    )


def sample_pool(loader: DataLoader[Any]) -> Sequence[int]:
    """The indices that probes may be chosen from.

    Where a SubsetRandomSampler splits one data set for training and validation, these are only the validation part.
    """
    # With several processes, Lightning wraps the sampler in one that gives each of them a part.
    sampler = getattr(getattr(loader.sampler, "dataset", None), "_sampler", loader.sampler)
    if isinstance(sampler, SubsetRandomSampler):
        return [int(index) for index in sampler.indices]
    return range(len(loader.dataset))  # type: ignore[arg-type]


def read_batches(loader: Any) -> tuple[Iterable[Any], list[str]]:
    """The loader's batches, read beside it: neither its workers nor its position move, as far as that can be had.

    Returns:
        The batches, and a notice where reading them moves the data set's own position.
    """
    if isinstance(loader, DataLoader):
        dataset, notices = loader.dataset, list[str]()
        settings: dict[str, Any] = {"collate_fn": loader.collate_fn, "num_workers": 0}
        if isinstance(dataset, IterableDataset):
            dataset, notices = _copied(dataset)
            settings["batch_size"] = loader.batch_size
        elif loader.batch_sampler is not None:
            settings["batch_sampler"] = loader.batch_sampler
        else:
            settings |= {"batch_size": None, "sampler": loader.sampler}
        return DataLoader(dataset, **settings), notices
    if not isinstance(loader, Iterable):
        raise BadInputError(
            f"The validation loader cannot be iterated over: {kind_of(loader)}. Use ImageProbes or TensorProbes."
        )
    if isinstance(loader, Iterator):
        copied, notices = _copied(loader)
        if notices:
            raise BadInputError(
                f"The validation loader ({type(loader).__name__}) can be read only once and cannot be copied: the "
                "validation would miss the probes. Give a loader that starts anew, or use ImageProbes or TensorProbes."
            )
        return copied, []
    return loader, []


def _copied(source: Any) -> tuple[Any, list[str]]:
    try:
        return copy.deepcopy(source), []
    except Exception as error:  # open files, locks, generators: whatever the data set holds
        return source, [
            f"{type(source).__name__} cannot be copied ({error}), so the probes were read from itself. If it goes on "
            "where it stopped, the first validation misses them."
        ]


def shortfall(wanted: int, count: int) -> list[str]:
    """What to say where there are fewer samples than asked for; nothing where there are enough."""
    return [f"{wanted} probes were asked for and there are only {count} samples; all are taken."] * (count < wanted)


def find_entry(batch: Any, key: int | str, position: int | None) -> Any:
    """What a batch or a sample holds under a key, an attribute or a position; by custom, a tuple has it at `position`.

    Raises:
        LookupError: It is not there; the message says what is.
    """
    if isinstance(batch, Mapping):
        if key in batch:
            return batch[key]
        raise LookupError(f"the batch has the keys {', '.join(map(repr, batch))}")
    is_sequence = isinstance(batch, (tuple, list))
    if isinstance(key, str) and (key in getattr(batch, "_fields", ()) if is_sequence else hasattr(batch, key)):
        return getattr(batch, key)
    if is_sequence:
        place = key if isinstance(key, int) else position
        if place is not None and -len(batch) <= place < len(batch):
            return batch[place]
        raise LookupError(f"the batch is a {type(batch).__name__} with {len(batch)} entries, found by position from 0")
    names = ", ".join(map(repr, getattr(batch, "__dict__", ()))) or "none"
    raise LookupError(f"the batch is of type {type(batch).__name__}, with the attributes {names}")


def as_images(images: Any) -> Tensor:
    """`(N, C, H, W)` as it is, `(N, H, W)` with a channel; anything else is refused."""
    if isinstance(images, Tensor) and images.ndim == 4:
        return images
    if isinstance(images, Tensor) and images.ndim == 3:
        return images.unsqueeze(1)
    raise BadInputError(
        f"The probes have to be images, a tensor (N, C, H, W) or (N, H, W); the batch has {kind_of(images)}. "
        "Say with image_key where the images are, or use TensorProbes."
    )


def join_images(images: list[Tensor]) -> Tensor:
    """The images of several batches as one `(N, C, H, W)`.

    Raises:
        ValueError: They differ in size.
    """
    shapes = {tuple(some.shape[1:]) for some in images}
    if len(shapes) > 1:
        raise BadInputError(
            f"The probes come from batches whose images differ in size: {sorted(shapes)} (C, H, W). Resize them in the "
            "data set's transform, or ask for no more probes than one batch has."
        )
    return torch.cat(images)


def class_indices(labels: Any, count: int) -> Tensor | None:
    """Labels as class indices `(N,)`, int64 on the CPU.

    Whole numbers are indices. Rows of non-negative numbers that sum to 1 are one-hot or soft, and give their largest
    entry. Floating-point numbers that are all 0 or 1 are the two classes of a single logit.

    Returns:
        None for anything else: several labels an image, regression targets, boxes, masks, text.
    """
    if isinstance(labels, (list, tuple, np.ndarray)):
        try:
            labels = default_collate(list(labels))
        except (TypeError, RuntimeError, ValueError, IndexError):
            return None
    if not isinstance(labels, Tensor) or labels.ndim == 0 or len(labels) != count:
        return None
    labels = labels.detach().cpu().as_subclass(Tensor)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.ndim == 2:
        sums = labels.double().sum(dim=1)
        one_hot = bool((labels >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
        return labels.double().argmax(dim=1) if one_hot else None
    if labels.ndim != 1 or labels.is_complex():
        return None
    if labels.is_floating_point() and not bool(((labels == 0) | (labels == 1)).all()):
        return None
    return labels.long().clone() if bool((labels >= 0).all()) else None


def kind_of(value: Any) -> str:
    """What a value is, for a message: a tensor by its shape, anything small as it is."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    text = repr(value)
    return f"{text} ({type(value).__name__})" if len(text) <= 60 else f"an object of type {type(value).__name__}"
