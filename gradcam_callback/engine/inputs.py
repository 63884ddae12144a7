"""What the model gets: the images that are explained, and whatever stands beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradcam_callback.engine.batch_rows import (
    Placeholder,
    leaves,
    map_leaves,
    map_tensors,
    repeat_rows,
    rows_of,
    take_rows,
)
from gradcam_callback.engine.layouts import Grid
from gradcam_callback.errors import BadInputError

IMAGE_NAMES = ("image", "images", "pixel_values", "inputs", "x")
"""As libraries name what images are given as."""


class _Slot(Placeholder):
    """Stands for the images among what else the model gets: one tensor, or a list with a tensor for each image."""

    def __init__(self, name: str, *, is_list: bool = False) -> None:
        self.name, self.is_list = name, is_list

    def __repr__(self) -> str:
        return self.name

    def __copy__(self) -> _Slot:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _Slot:
        return self

    def __reduce__(self) -> str:
        return self.name  # a pickled one is the same object again


IMAGES = _Slot("IMAGES")
IMAGE_LIST = _Slot("IMAGE_LIST", is_list=True)


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class ModelInputs:
    """Images, and the arguments of forward that they are part of.

    Of the other arguments, tensors and lists with as many entries as there are images hold one for each of them; see
    `batch_rows`. Everything else is handed on as it is.

    Attributes:
        images: `(N, C, H, W)`, or `(N, H, W)` for a model that takes images without a channel axis. Volumes and videos
            are `(N, C, D, H, W)`, signals `(N, C, W)`.
        args: By position, with `IMAGES` where the images are, or `IMAGE_LIST` if the model takes a list of them.
        kwargs: By keyword, likewise.
        axes: Of space: 1 of signals, 2 of images, 3 of volumes; 0 while that is not known, see `spaces`.
        sizes: `(h, w)` of each image of a list, which stands at the upper left of its row of `images`, with zeros
            beside and beneath it; None: each is all of its row.
    """

    images: Tensor
    args: tuple[Any, ...] = (IMAGES,)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    axes: int = 0
    sizes: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim == 4:
            object.__setattr__(self, "axes", 2)

    @classmethod
    def of(cls, given: Any) -> ModelInputs:
        """What a caller gives for inputs, as one.

        Args:
            given: A tensor of images; a list of tensors `(C, h, w)`, whose sizes may differ, for a model that takes a
                list; a tuple of arguments by position; or a mapping of arguments by keyword.

        Raises:
            TypeError: It is none of these.
            ValueError: There are no images in it.
        """
        if isinstance(given, ModelInputs):
            return given
        if isinstance(given, Tensor) or _is_list(given):
            images, slot, sizes = _read(given)
            return cls(images, (slot,), sizes=sizes)
        if isinstance(given, Mapping):
            name = _image_name(given)
            images, slot, sizes = _read(given[name])
            return cls(images, (), {**given, name: slot}, sizes=sizes)
        if isinstance(given, tuple):
            place = _image_place(given)
            images, slot, sizes = _read(given[place])
            return cls(images, (*given[:place], slot, *given[place + 1 :]), sizes=sizes)
        raise TypeError(
            "The inputs are a tensor (N, C, H, W), a list of images, a tuple of arguments or a mapping of them; given: "
            f"{type(given).__name__}."
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, samples: slice) -> ModelInputs:
        count = len(self)
        args, kwargs = rows_of(self.args, samples, count), rows_of(dict(self.kwargs), samples, count)
        images, sizes = self.images[samples], None
        if self.sizes is not None:  # those that are left may need less room
            sizes = self.sizes[samples]
            images = images[..., : max(h for h, _ in sizes), : max(w for _, w in sizes)] if sizes else images
        return replace(self, images=images, args=args, kwargs=kwargs, sizes=sizes)

    @property
    def size(self) -> Grid:
        """`(H, W)` of the images, in pixels; of signals `(W,)`, of volumes `(D, H, W)`."""
        return tuple(self.images.shape[-(self.axes or max(2, self.images.ndim - 2)) :])

    @property
    def differ(self) -> bool:
        """Whether the images differ in size."""
        return self.sizes is not None and len(set(self.sizes)) > 1

    @property
    def apart(self) -> Tensor | list[Tensor]:
        """The images; a list of them where they differ in size."""
        return separated(self.images, self.sizes) if self.differ else self.images

    @property
    def others(self) -> Iterator[Tensor]:
        """The tensors beside the images."""
        return (leaf for leaf in leaves((self.args, dict(self.kwargs))) if isinstance(leaf, Tensor))

    @property
    def has_other_images(self) -> bool:
        """Whether something beside the images looks like them, so that a layer may see either."""
        return any(other.shape == self.images.shape and other.is_floating_point() for other in self.others)

    def call(self, model: nn.Module) -> Any:
        """Call the model with copies, because forward may change its input in place."""
        images = self.images.clone()
        args, kwargs = map_tensors((self.args, dict(self.kwargs)), Tensor.clone)
        return model(*filled(args, images, self.sizes), **filled(kwargs, images, self.sizes))

    def with_images(self, images: Tensor) -> ModelInputs:
        """The same with other images of the same number."""
        return replace(self, images=images)

    def with_variants(self, variants: Sequence[Tensor]) -> ModelInputs:
        """Several batches of other images of the same number, one after the other, with what stands beside them."""
        times, count = len(variants), len(self)
        args, kwargs = (repeat_rows(given, times, count) for given in (self.args, dict(self.kwargs)))
        sizes = None if self.sizes is None else self.sizes * times
        return replace(self, images=torch.cat(list(variants)), args=args, kwargs=kwargs, sizes=sizes)

    def taken(self, rows: Tensor, images: Tensor) -> ModelInputs:
        """Other images, with what stands beside the samples that they are made of: `rows` are their positions."""
        args, kwargs = (take_rows(given, rows, len(self)) for given in (self.args, dict(self.kwargs)))
        sizes = None if self.sizes is None else tuple(self.sizes[row] for row in rows.tolist())
        return replace(self, images=images, args=args, kwargs=kwargs, sizes=sizes)

    def stacked(self) -> ModelInputs:
        """The same with one tensor of images in place of a list, whose images have one size."""
        args, kwargs = map_leaves((self.args, dict(self.kwargs)), lambda leaf: IMAGES if leaf is IMAGE_LIST else leaf)
        return replace(self, args=args, kwargs=kwargs, sizes=None)

    def to(self, device: torch.device) -> ModelInputs:
        """The same on another device, without a history."""

        def moved(leaf: Any) -> Any:
            return leaf.detach().to(device) if isinstance(leaf, Tensor) else leaf

        args, kwargs = map_leaves((self.args, dict(self.kwargs)), moved)
        return replace(self, images=moved(self.images), args=args, kwargs=kwargs)


def filled(value: Any, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Any:
    """The same structure with the images in their place; in a list, each has its own size."""

    def given(leaf: Any) -> Any:
        if not isinstance(leaf, _Slot):
            return leaf
        return separated(images, sizes) if leaf.is_list else images

    return map_leaves(value, given)


def separated(images: Tensor, sizes: Sequence[tuple[int, int]] | None) -> list[Tensor]:
    """One tensor an image, of its own size."""
    if sizes is None:
        return list(images)
    return [image[..., :height, :width].contiguous() for image, (height, width) in zip(images, sizes, strict=True)]


def padded(images: Mapping[str, Tensor]) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Images `(C, h, w)` by name as one tensor `(N, C, H, W)`, each at the upper left among zeros; and their sizes.

    Raises:
        ValueError: They are no images, or differ in channels or dtype; the message names the first of each kind.
    """
    kinds = {f"{tuple(image.shape[:-2])} of {image.dtype}": name for name, image in reversed(list(images.items()))}
    if len(kinds) > 1 or any(image.ndim != 3 for image in images.values()):
        found = ", ".join(
            f"{name} is {tuple(images[name].shape)} of {images[name].dtype}" for name in reversed(kinds.values())
        )
        raise BadInputError(
            "A list of images holds tensors (C, h, w) with the same number of channels and of one dtype, whose height "
            f"and width may differ; given: {found}."
        )
    sizes = tuple((image.shape[1], image.shape[2]) for image in images.values())
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    parts = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images.values()]
    return torch.stack(parts), sizes


Inputs = Tensor | Sequence[Tensor] | Mapping[str, Any] | ModelInputs
"""What may be given for inputs; see `ModelInputs.of`."""


def _checked(images: Any) -> Tensor:
    if not isinstance(images, Tensor):
        raise TypeError(f"The images are a tensor (N, C, H, W); given: {type(images).__name__}.")
    if images.ndim not in (3, 4, 5) or len(images) == 0:
        raise BadInputError(
            "The inputs are a tensor (N, C, H, W), or (N, H, W) for a model that takes images without a channel axis, "
            "or signals (N, C, W), or volumes (N, C, D, H, W), with at least one of them; given: "
            f"{tuple(images.shape)}."
        )
    return images


def _read(given: Any) -> tuple[Tensor, _Slot, tuple[tuple[int, int], ...] | None]:
    """Images, what stands for them, and their sizes where they are a list."""
    if not _is_list(given):
        return _checked(given), IMAGES, None
    images, sizes = padded({f"#{place}": image for place, image in enumerate(given)})
    return images, IMAGE_LIST, sizes


def _is_list(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(image, Tensor) for image in given)


def _image_name(given: Mapping[str, Any]) -> str:
    """The keyword of the images: by its name, else the only one that may be."""
    candidates = [name for name, value in given.items() if _may_be_images(value)]
    named = [name for name in IMAGE_NAMES if name in candidates]
    if named or len(candidates) == 1:
        return (named or candidates)[0]
    held = ", ".join(f"{name!r}: {_describe(value)}" for name, value in given.items()) or "nothing"
    raise BadInputError(
        f"Which of the inputs are the images is not known: {held}. Possible are tensors (N, C, H, W): a single one, or "
        f"one with a usual name ({', '.join(IMAGE_NAMES)})."
    )


def _image_place(given: tuple[Any, ...]) -> int:
    """The position of the images: the first tensor with four axes, else a list of them, else with five, or three."""
    for kind in (4, list, 5, 3):
        for place, value in enumerate(given):
            if _is_list_of_images(value) if kind is list else isinstance(value, Tensor) and value.ndim == kind:
                return place
    held = ", ".join(map(_describe, given)) or "nothing"
    raise BadInputError(f"There are no images among the inputs, which are tensors (N, C, H, W); given: {held}.")


def _may_be_images(value: Any) -> bool:
    return _is_list_of_images(value) or (isinstance(value, Tensor) and value.ndim in (3, 4, 5))


def _is_list_of_images(value: Any) -> bool:
    return _is_list(value) and all(image.ndim == 3 for image in value)


def _describe(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
