"""Probes from image files."""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gradcam_callback.engine.replica import copy_structure
from gradcam_callback.errors import BadInputError
from gradcam_callback.probes.batches import kind_of
from gradcam_callback.probes.checks import class_labels
from gradcam_callback.probes.dataset_info import image_transforms
from gradcam_callback.probes.probe_set import copy_tensor, make_probe_set, stack_images
from gradcam_callback.probes.source import CaptureContext, FixedCollector, ProbeCollector, ProbeSource
from gradcam_callback.probes.tensors import fixed_seed, pass_batch_hooks

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""The files that count as images when a folder is given."""

MOST_FILES = 256
"""How many files at most: a folder with more is a data set, and would be explained after every validation."""


class ImageProbes(ProbeSource):
    """Image files, the same for every data set. Each is opened upright (EXIF) and in RGB.

    Args:
        files: One file, a folder, or a list; 256 files at most. A folder's images come in natural order, `2.png` before
            `10.png`; its subfolders are not searched, and what is no regular file (a pipe, a broken link) is passed
            over.
        transform: From a PIL image to the float tensor `(C, H, W)` that the model gets. None takes the `transform` of
            the first validation loader's data set; where there is none, the pixels are scaled to 0..1. A copy of it is
            run, so that random numbers of its own do not move.
        labels: One class index a file, in the order of the files.
        through_hooks: Whether the images pass through the model's batch-transfer hooks, as a batch `[images, labels]`.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        transform: Callable[..., Any] | None = None,
        labels: Sequence[int] | None = None,
        through_hooks: bool = False,
    ) -> None:
        given = [files] if isinstance(files, (str, Path)) else list(files)
        if transform is not None and not callable(transform):
            raise TypeError(f"transform: expected a function from a PIL image to a tensor, got {kind_of(transform)}.")
        self.files = tuple(str(file) for file in given)
        self.transform = transform
        self.through_hooks = through_hooks
        paths = self._paths()
        for path in paths:
            with _opened(path):
                pass  # a look at the header, so that a wrong file is known before training starts
        self.labels = None if labels is None else class_labels(labels, len(paths), "files")

    def start(self, context: CaptureContext) -> ProbeCollector:
        """Read the files; see `ProbeSource.start`."""
        dataset = context.datasets[0] if context.datasets else None
        transforms = [self.transform] if self.transform is not None else image_transforms(dataset)
        unscaled = (
            "ImageProbes: no transform was given and the validation data has none to borrow, so the files are "
            "scaled to 0..1 and not normalised."
        )
        paths = self._paths()
        names = _shortest_names(paths)
        with fixed_seed():
            steps = copy_structure(transforms) or [_unit_range]
            images = stack_images(
                {name: copy_tensor(_load(path, steps)) for name, path in zip(names, paths, strict=True)}
            )
            labels = None if self.labels is None else torch.tensor(class_labels(self.labels, len(paths), "files"))
            passed, notices = pass_batch_hooks(images, labels, context, self.through_hooks)
            notices = notices if transforms else (unscaled, *notices)
            return FixedCollector(make_probe_set(dataset, passed, labels, names, transforms, notices=notices))

    def _paths(self) -> list[Path]:
        paths = [found for file in self.files for found in _image_files(Path(file).expanduser())]
        if not paths:
            raise BadInputError(
                "files: the list is empty. Give an image file, a folder of images, or a list of image files."
            )
        if len(paths) > MOST_FILES:
            raise BadInputError(
                f"files: these are {len(paths)} images, and all would be explained after every validation. Give a list "
                f"of those that matter, {MOST_FILES} at most."
            )
        twice = [str(path) for path, times in Counter(paths).items() if times > 1]
        if twice:
            raise BadInputError(f"files: given more than once: {', '.join(twice)}.")
        return paths


def _image_files(path: Path) -> list[Path]:
    """The file, or the images of the folder."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return [path]
        if not stat.S_ISDIR(mode):
            raise BadInputError(f"files: {path} is no regular file (a pipe, a socket or a device). Give an image file.")
        shown = [file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
        inside = [file for file in shown if file.is_file()]
    except FileNotFoundError as error:
        what = "a link to nothing" if path.is_symlink() else "no file or folder"
        raise BadInputError(f"files: {path} is {what} (seen from {Path.cwd()}).") from error
    except OSError as error:
        raise BadInputError(f"files: {path} cannot be read ({type(error).__name__}: {error}).") from error
    if not inside:
        raise BadInputError(
            f"files: no file in {path} matches. Looked for {', '.join(IMAGE_SUFFIXES)}, not in subfolders."
        )
    return sorted(inside, key=_natural_order)


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    """Text and numbers by turns, so that `2.png` comes before `10.png`; then the name, so that no tie is left."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # each format of Pillow's breaks in a way of its own, and some images are too large
        raise BadInputError(f"files: {path} is no image that can be read ({type(error).__name__}: {error}).") from error


def _load(path: Path, transforms: Sequence[Callable[..., Any]]) -> Tensor:
    """One file through the transforms: `(C, H, W)`."""
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    result: Any = upright
    try:
        for transform in transforms:
            result = transform(result)
    except Exception as error:
        raise BadInputError(
            f"transform: it failed on {path} ({type(error).__name__}: {error}). It gets a PIL image in RGB; give "
            "ImageProbes a transform that makes a tensor of it."
        ) from error
    if isinstance(result, Tensor) and result.ndim == 2:
        return result.unsqueeze(0)
    if isinstance(result, Tensor) and result.ndim == 3:
        return result
    raise BadInputError(f"transform: expected a tensor (C, H, W), got {kind_of(result)} for {path}.")


def _unit_range(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _shortest_names(paths: Sequence[Path]) -> list[str]:
    """The file names, with as many folders in front as it takes to tell them apart."""
    deepest = max(len(path.parts) for path in paths)
    for depth in range(1, deepest + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names
