"""The fixed images: where they come from, their labels and names, their fingerprint.

Probes are captured once and looked at in every epoch. So a capture has to be repeatable and must leave no trace: it
runs under a seed of its own, and every random generator within reach is put back afterwards.
"""

from __future__ import annotations

import hashlib
import random
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
)

from gradcam_callback.engine.generators import sealed
from gradcam_callback.errors import BadInputError
from gradcam_callback.probes.batches import (
    as_images,
    class_indices,
    find_entry,
    is_addressable,
    join_images,
    kind_of,
    read_batches,
    sample_pool,
    shortfall,
)
from gradcam_callback.probes.dataset_info import (
    all_transforms,
    find_class_names,
    find_statistics,
    first_dataset,
    image_transforms,
    known_labels,
)
from gradcam_callback.results import ProbeSet

Transfer = Callable[[Any, int], Any]
"""`(batch, dataloader_idx)` to the batch as the model gets it: what Lightning's batch-transfer hooks make of it."""

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""The files that count as images when a folder is given."""

_DEFAULT_COUNT = 8
_IMAGE_KEY = "image"
_LABEL_KEY = "label"


class ProbeSource(ABC):
    """Where the probes come from. Subclass it to bring your own.

    The easiest way to fill a `ProbeSet` is to gather the images and end with
    `return TensorProbes(images, labels, names).capture(loaders, transfer)`.
    """

    @abstractmethod
    def capture(
        self, loaders: Sequence[DataLoader[Any]], transfer: Transfer, indices: Sequence[int] | None = None
    ) -> ProbeSet:
        """Take the probes. Called once a run; must leave every random generator as it was.

        Args:
            loaders: The validation loaders; may be empty.
            transfer: Brings a batch to the model's device, as Lightning would.
            indices: Those of an earlier run, which is being resumed: they are taken again instead of choosing anew.
                Sources without indices ignore them.

        Raises:
            ValueError: There is nothing to take, or it is not as the configuration says.
        """

    def describe(self) -> str:
        """The configuration as a text that stays the same from run to run, to notice when it was changed."""
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{type(self).__name__}({values})")


class ValidationProbes(ProbeSource):
    """Samples of a validation loader's data set.

    They pass once through the data set's transform, the loader's `collate_fn` and the batch-transfer hooks. Of data
    that can only be read in order (`IterableDataset`, a loader of ready batches), the first `n` samples are taken.

    Args:
        n: How many, at least 1. None takes 8, or, with `per_class`, as many as that gives; with both, `n` is the most.
        indices: These positions of the data set, in this order; excludes `n`, `per_class` and `seed`.
        per_class: So many samples of each class, ordered by class. The labels are read from the data set's `targets` or
            `labels`; where it has none, its samples are loaded one after the other until every class is complete.
        dataloader_idx: Which validation loader, counted from 0.
        seed: Chooses the samples at random, the same ones for the same seed. None takes the first ones. Random
            transforms are drawn under this seed too (None: under 0).
        image_key: Where a batch keeps its images: a key, the name of an attribute, or a position. The default stands
            for the first entry of a tuple.
        label_key: Where a batch keeps its labels, likewise. The default stands for the second entry of a tuple.
    """

    def __init__(
        self,
        n: int | None = None,
        indices: Sequence[int] | None = None,
        per_class: int | None = None,
        dataloader_idx: int = 0,
        seed: int | None = None,
        image_key: int | str = _IMAGE_KEY,
        label_key: int | str = _LABEL_KEY,
    ) -> None:
        if indices is not None and (n, per_class, seed) != (None, None, None):
            raise BadInputError(
                "ValidationProbes: `indices` already says which samples to take. "
                f"Leave out n, per_class and seed, got n={n!r}, per_class={per_class!r}, seed={seed!r}."
            )
        self.n = None if n is None else _whole("n", n, at_least=1)
        self.indices = None if indices is None else _distinct_indices("indices", indices)
        self.per_class = None if per_class is None else _whole("per_class", per_class, at_least=1)
        self.dataloader_idx = _whole("dataloader_idx", dataloader_idx, at_least=0)
        self.seed = None if seed is None else _whole("seed", seed, at_least=0)
        if self.seed is not None and self.seed >= 2**32:
            raise BadInputError(f"seed: NumPy takes seeds from 0 to 2**32 - 1, got {seed!r}.")
        self.image_key = _key("image_key", image_key)
        self.label_key = _key("label_key", label_key)

    def capture(
        self, loaders: Sequence[DataLoader[Any]], transfer: Transfer, indices: Sequence[int] | None = None
    ) -> ProbeSet:
        """Take the samples; see `ProbeSource.capture`."""
        loader = self._loader(loaders)
        seed = self.seed or 0
        if not is_addressable(loader):
            with sealed(seed, loader):
                return self._read_stream(loader, transfer)
        with sealed(seed, loader):
            chosen, notices = self._chosen(loader, indices)
        # Choosing may load samples, and on resume it does not: a fresh seal lets random transforms draw the same again.
        with sealed(seed, loader):
            return self._read_samples(loader, transfer, chosen, notices)

    def _loader(self, loaders: Sequence[Any]) -> Any:
        if not loaders:
            raise BadInputError(
                "ValidationProbes: there is no validation loader to take probes from. "
                "Give the trainer a val_dataloader, or use ImageProbes or TensorProbes."
            )
        if self.dataloader_idx >= len(loaders):
            raise BadInputError(
                f"dataloader_idx={self.dataloader_idx}: there is no such validation loader; "
                f"there are {len(loaders)}, counted from 0."
            )
        return loaders[self.dataloader_idx]

    def _chosen(self, loader: DataLoader[Any], earlier: Sequence[int] | None) -> tuple[tuple[int, ...], list[str]]:
        notices: list[str] = []
        chosen = self.indices if earlier is None else _distinct_indices("indices of the earlier run", earlier)
        if chosen is None:
            chosen, notices = self._choose(loader)
        if not chosen:
            raise BadInputError(
                f"The data set of validation loader {self.dataloader_idx} is empty: there are no probes."
            )
        length = len(loader.dataset)  # type: ignore[arg-type]
        outside = [index for index in chosen if index >= length]
        if outside:
            raise BadInputError(
                f"indices: {outside} not in the data set of validation loader {self.dataloader_idx}, "
                f"which has {length} samples, counted from 0."
            )
        return chosen, notices

    def _read_samples(
        self, loader: DataLoader[Any], transfer: Transfer, chosen: tuple[int, ...], notices: list[str]
    ) -> ProbeSet:
        dataset = loader.dataset
        batch = transfer(loader.collate_fn([dataset[index] for index in chosen]), self.dataloader_idx)
        images, labels, more = self._unpack(batch)
        if len(images) != len(chosen):
            raise BadInputError(
                f"ValidationProbes: {len(chosen)} samples became {len(images)} images on the way through the "
                "collate_fn and the batch-transfer hooks. Each sample has to give one image."
            )
        return _probe_set(images, labels, [f"#{i}" for i in chosen], dataset, notices=notices + more, indices=chosen)

    def _read_stream(self, loader: Any, transfer: Transfer) -> ProbeSet:
        if self.indices is not None or self.per_class is not None:
            option = "indices" if self.indices is not None else "per_class"
            raise BadInputError(
                f"{option}: validation loader {self.dataloader_idx} can only be read in order (an IterableDataset, or "
                "ready batches): its samples cannot be chosen. Use n for the first ones, ImageProbes or TensorProbes."
            )
        wanted = self.n or _DEFAULT_COUNT
        batches, notices = read_batches(loader)
        images: list[Tensor] = []
        labels: list[Tensor | None] = []
        for batch in batches:
            some, their_labels, more = self._unpack(transfer(batch, self.dataloader_idx))
            room = wanted - sum(map(len, images))
            images.append(some[:room])
            labels.append(None if their_labels is None else their_labels[:room])
            notices += [notice for notice in more if notice not in notices]
            if len(some) >= room:
                break
        count = sum(map(len, images))
        if count == 0:
            raise BadInputError(f"Validation loader {self.dataloader_idx} is empty: there are no probes.")
        notices += shortfall(wanted, count)
        known = [some_labels for some_labels in labels if some_labels is not None]
        joined = torch.cat(known) if len(known) == len(labels) else None
        names = [f"#{position}" for position in range(count)]
        return _probe_set(join_images(images), joined, names, getattr(loader, "dataset", None), notices=notices)

    def _choose(self, loader: DataLoader[Any]) -> tuple[tuple[int, ...], list[str]]:
        pool = sample_pool(loader)
        if self.per_class is not None:
            return self._choose_per_class(loader.dataset, pool, self.per_class)
        wanted = self.n or _DEFAULT_COUNT
        count = min(wanted, len(pool))
        chosen = pool[:count] if self.seed is None else sorted(random.Random(self.seed).sample(pool, count))
        return tuple(chosen), shortfall(wanted, count)

    def _choose_per_class(
        self, dataset: Dataset[Any], pool: Sequence[int], per_class: int
    ) -> tuple[tuple[int, ...], list[str]]:
        order = pool if self.seed is None else random.Random(self.seed).sample(pool, len(pool))
        known = known_labels(dataset)
        names = find_class_names(dataset) or ()
        found: dict[int, list[int]] = {label: [] for label in range(len(names))}
        incomplete = set(found)
        loaded = 0
        for index in order:
            if names and not incomplete:
                break
            label = self._load_label(dataset, index) if known is None else known[index]
            loaded += known is None
            members = found.setdefault(label, [])
            if len(members) < per_class:
                members.append(index)
            if len(members) == per_class:
                incomplete.discard(label)
        notices = []
        if known is None:
            notices.append(f"per_class: the data set has no `targets`; {loaded} samples were loaded for their labels.")
        short = [f"{label} has {len(members)}" for label, members in sorted(found.items()) if len(members) < per_class]
        if short:
            notices.append(f"per_class={per_class}, and some classes have fewer samples: {', '.join(short)}.")
        chosen = [index for _, members in sorted(found.items()) for index in members]
        if self.n is not None and self.n < len(chosen):
            notices.append(
                f"n={self.n} leaves out {len(chosen) - self.n} of the {len(chosen)} samples that per_class gives."
            )
        return tuple(chosen[: self.n]), notices

    def _load_label(self, dataset: Dataset[Any], index: int) -> int:
        entry, _ = self._label_entry(dataset[index])
        labels = class_indices([entry], 1)
        if labels is None:
            raise BadInputError(
                f"per_class: sample {index} has no class index for a label (got {kind_of(entry)}). Use n or indices; "
                f"or say with label_key where the label is, now {self.label_key!r}."
            )
        return int(labels)

    def _unpack(self, batch: Any) -> tuple[Tensor, Tensor | None, list[str]]:
        """Split a batch into images `(N, C, H, W)`, labels `(N,)` or None, and what to tell the user about them."""
        images = as_images(self._image_entry(batch))
        entry, notices = self._label_entry(batch)
        labels = class_indices(entry, len(images))
        if labels is None and entry is not None:
            notices.append(f"The labels are no class indices ({kind_of(entry)}), so the probes have none.")
        return images, labels, notices

    def _image_entry(self, batch: Any) -> Any:
        if isinstance(batch, Tensor):
            return batch
        try:
            return find_entry(batch, self.image_key, position=0 if self.image_key == _IMAGE_KEY else None)
        except LookupError as error:
            raise BadInputError(
                f"image_key={self.image_key!r} is not in the batch: {error.args[0]}. "
                "Say with image_key where the images are."
            ) from None

    def _label_entry(self, batch: Any) -> tuple[Any, list[str]]:
        if isinstance(batch, Tensor):
            return None, []
        try:
            return find_entry(batch, self.label_key, position=1 if self.label_key == _LABEL_KEY else None), []
        except LookupError as error:
            where = f"label_key={self.label_key!r} is not in the batch: {error.args[0]}."
            if self.label_key != _LABEL_KEY:
                raise BadInputError(f"{where} Say with label_key where the labels are.") from None
            # Nobody asked for this key, so data without labels is fine; but they may hide under another name.
            return None, [f"{where} The probes have no labels; if there are some, say where with label_key."]


class ImageProbes(ProbeSource):
    """Image files, the same for every data set. Each is opened upright (EXIF) and in RGB.

    Args:
        files: One file, a folder, or a list. A folder's images come in natural order, `2.png` before `10.png`; its
            subfolders are not searched.
        transform: From a PIL image to the float tensor `(C, H, W)` that the model gets. None takes the `transform` of
            the first validation loader's data set; where there is none, the pixels are scaled to 0..1.
        labels: One class index a file, in the order of the files.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        transform: Callable[..., Any] | None = None,
        labels: Sequence[int] | None = None,
    ) -> None:
        given = [files] if isinstance(files, (str, Path)) else list(files)
        if transform is not None and not callable(transform):
            raise TypeError(f"transform: expected a function from a PIL image to a tensor, got {kind_of(transform)}.")
        self.files = tuple(str(file) for file in given)
        self.transform = transform
        paths = self._paths()
        for path in paths:
            with _opened(path):
                pass  # a look at the header, so that a wrong file is known before training starts
        self.labels = None if labels is None else _given_labels(labels, len(paths), "files")

    def capture(
        self, loaders: Sequence[DataLoader[Any]], transfer: Transfer, indices: Sequence[int] | None = None
    ) -> ProbeSet:
        """Read the files; see `ProbeSource.capture`. `transfer` is not applied: the images stay on the CPU."""
        dataset = first_dataset(loaders)
        transforms = [self.transform] if self.transform is not None else image_transforms(dataset)
        notices = []
        if not transforms:
            notices.append(
                "ImageProbes: no transform was given and the validation data has none to borrow, so the files are "
                "scaled to 0..1 and not normalised."
            )
        paths = self._paths()
        with sealed(0, transforms):
            images = [_load(path, transforms or [_unit_range]) for path in paths]
            _check_equal_sizes(paths, images)
            labels = None if self.labels is None else _given_labels(self.labels, len(paths), "files")
            return _probe_set(
                torch.stack(images),
                None if labels is None else torch.tensor(labels),
                _shortest_names(paths),
                dataset,
                transforms=transforms,
                notices=notices,
            )

    def _paths(self) -> list[Path]:
        paths = [found for file in self.files for found in _image_files(Path(file).expanduser())]
        if not paths:
            raise BadInputError(
                "files: the list is empty. Give an image file, a folder of images, or a list of image files."
            )
        twice = [str(path) for path, times in Counter(paths).items() if times > 1]
        if twice:
            raise BadInputError(f"files: given more than once: {', '.join(twice)}.")
        return paths


class TensorProbes(ProbeSource):
    """Images that are already what the model gets. From Python only; YAML has no tensors.

    Args:
        images: `(N, C, H, W)`, floating point or uint8. A copy is kept.
        labels: One class index an image.
        names: One short name an image. None numbers them.
    """

    def __init__(
        self, images: Tensor, labels: Tensor | Sequence[int] | None = None, names: Sequence[str] | None = None
    ) -> None:
        if not isinstance(images, Tensor) or images.ndim != 4 or images.numel() == 0:
            raise BadInputError(
                f"images: expected a tensor (N, C, H, W) with at least one image, got {kind_of(images)}."
            )
        if not images.is_floating_point() and images.dtype != torch.uint8:
            raise BadInputError(f"images: expected floating point or uint8, got {images.dtype}.")
        with torch.inference_mode(False):
            self.images = _own(images)
        given = labels.tolist() if isinstance(labels, Tensor) else labels
        self.labels = None if given is None else _given_labels(given, len(images), "images")
        if names is not None and len(names) != len(images):
            raise BadInputError(f"names: there are {len(images)} images and {len(names)} names; give one a name each.")
        self.names = tuple(f"#{i}" for i in range(len(images))) if names is None else tuple(map(str, names))

    def capture(
        self, loaders: Sequence[DataLoader[Any]], transfer: Transfer, indices: Sequence[int] | None = None
    ) -> ProbeSet:
        """Hand out a copy of the images; see `ProbeSource.capture`. `transfer` is not applied."""
        labels = None if self.labels is None else torch.tensor(self.labels)
        with torch.inference_mode(False):
            # Bytes have not passed the data set's normalisation.
            transforms = None if self.images.is_floating_point() else ()
            return _probe_set(self.images, labels, self.names, first_dataset(loaders), transforms=transforms)

    def describe(self) -> str:
        """The configuration as a text, with the fingerprint in place of the pixels."""
        labels = None if self.labels is None else torch.tensor(self.labels)
        return f"TensorProbes(fingerprint={fingerprint(self.images, labels)}, names={self.names!r})"


def as_source(probes: int | Sequence[int] | ProbeSource) -> ProbeSource:
    """Read the callback's short forms: a number is the first so many, a list is these indices.

    Raises:
        TypeError: It is none of these.
        ValueError: The number or an index is out of range.
    """
    if isinstance(probes, ProbeSource):
        return probes
    if isinstance(probes, Integral) and not isinstance(probes, bool):
        return ValidationProbes(n=int(probes))
    if isinstance(probes, Sequence) and not isinstance(probes, (str, bytes)):
        return ValidationProbes(indices=probes)
    raise TypeError(
        f"probes: expected a number, a list of indices or a probe source, got {kind_of(probes)}. "
        "For files use ImageProbes(files=...), for a tensor TensorProbes(images=...)."
    )


def fingerprint(images: Tensor, labels: Tensor | None) -> str:
    """SHA-256 over shape, dtype and bytes of images and labels, in hexadecimal; the same on every device."""
    digest = hashlib.sha256()
    for tensor in (images, labels):
        if tensor is None:
            digest.update(b"none")
            continue
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        # NumPy has no bfloat16; as bytes every dtype passes.
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _probe_set(
    images: Tensor,
    labels: Tensor | None,
    names: Iterable[str],
    dataset: Any,
    *,
    transforms: Sequence[Any] | None = None,
    notices: Iterable[str] = (),
    indices: tuple[int, ...] | None = None,
) -> ProbeSet:
    """Put a probe set together; `transforms` None takes those of the data set."""
    images = _own(images)
    mean, std = find_statistics(all_transforms(dataset) if transforms is None else transforms, channels=images.shape[1])
    return ProbeSet(
        images=images,
        labels=labels,
        names=tuple(names),
        indices=indices,
        class_names=find_class_names(dataset),
        mean=mean,
        std=std,
        fingerprint=fingerprint(images, labels),
        notices=tuple(notices),
    )


def _own(images: Tensor) -> Tensor:
    """A plain, contiguous tensor with memory of its own; torchvision's subclasses are left behind."""
    return images.detach().as_subclass(Tensor).clone(memory_format=torch.contiguous_format)


# Options --------------------------------------------------------------------------------------------------------------


def _whole(option: str, value: Any, at_least: int) -> int:
    # A bool is an int to Python, and `n: true` in YAML is a slip.
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{option}: expected a whole number of at least {at_least}, got {kind_of(value)}.")
    if value < at_least:
        raise BadInputError(f"{option}: expected a whole number of at least {at_least}, got {value}.")
    return int(value)


def _distinct_indices(option: str, indices: Any) -> tuple[int, ...]:
    if not isinstance(indices, Sequence) or isinstance(indices, (str, bytes)):
        raise TypeError(f"{option}: expected a list of whole numbers, got {kind_of(indices)}.")
    if not indices:
        raise BadInputError(f"{option}: the list is empty. Give at least one index, counted from 0.")
    wholes = tuple(_whole(f"{option}[{place}]", index, at_least=0) for place, index in enumerate(indices))
    twice = [index for index, times in Counter(wholes).items() if times > 1]
    if twice:
        raise BadInputError(f"{option}: given more than once: {twice}. Each probe is shown once.")
    return wholes


def _key(option: str, key: Any) -> int | str:
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise TypeError(f"{option}: expected a key, the name of an attribute, or a position, got {kind_of(key)}.")
    return key


def _given_labels(labels: Any, count: int, of_what: str) -> tuple[int, ...]:
    if not isinstance(labels, Sequence) or isinstance(labels, (str, bytes)):
        raise TypeError(f"labels: expected a list of class indices, got {kind_of(labels)}.")
    if len(labels) != count:
        raise BadInputError(f"labels: there are {count} {of_what} and {len(labels)} labels; give each one a label.")
    return tuple(_whole(f"labels[{place}]", label, at_least=0) for place, label in enumerate(labels))


# Files ----------------------------------------------------------------------------------------------------------------


def _image_files(path: Path) -> list[Path]:
    if path.is_dir():
        inside = [
            file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        ]
        if not inside:
            raise BadInputError(
                f"files: no file in {path} matches. Looked for {', '.join(IMAGE_SUFFIXES)}, not in subfolders."
            )
        return sorted(inside, key=_natural_order)
    if not path.is_file():
        raise BadInputError(f"files: there is no file or folder {path} (seen from {Path.cwd()}).")
    return [path]


def _natural_order(path: Path) -> tuple[list[str | int], str]:
    """Text and numbers by turns, so that `2.png` comes before `10.png`; then the name, so that no tie is left."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # each format of Pillow's breaks in a way of its own
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


def _check_equal_sizes(paths: Sequence[Path], images: Sequence[Tensor]) -> None:
    if len({image.shape for image in images}) > 1:
        sizes = ", ".join(f"{path.name} {tuple(image.shape)}" for path, image in zip(paths, images, strict=True))
        raise BadInputError(
            f"files: after the transform the images differ in size (C, H, W): {sizes}. Put a resize to one height and "
            "width into the transform."
        )


def _shortest_names(paths: Sequence[Path]) -> list[str]:
    """The file names, with as many folders in front as it takes to tell them apart."""
    deepest = max(len(path.parts) for path in paths)
    for depth in range(1, deepest + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names
