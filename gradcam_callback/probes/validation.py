"""Probes out of the batches that a validation reads. See Note [Samples as they pass] in `source`."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import replace
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from gradcam_callback.engine.batch_rows import join_rows, map_tensors, replace_entry, rows_of
from gradcam_callback.engine.inputs import IMAGE_LIST, IMAGES, padded
from gradcam_callback.errors import BadInputError
from gradcam_callback.probes.annotations import as_rows, join_labels, not_classes
from gradcam_callback.probes.batches import (
    IMAGE_KEY,
    LABEL_KEY,
    as_column,
    choose_label_key,
    class_indices,
    find_entry,
    has_names,
    has_one_image_entry,
    kind_of,
    locate_images,
)
from gradcam_callback.probes.checks import batch_key, distinct_positions, whole_number
from gradcam_callback.probes.dataset_info import find_class_names
from gradcam_callback.probes.probe_set import ProbeSet, copy_tensor, make_probe_set, stack_images
from gradcam_callback.probes.selection import Selection
from gradcam_callback.probes.source import CaptureContext, ProbeCollector, ProbeSample, ProbeSource

DEFAULT_COUNT = 8


class ValidationProbes(ProbeSource):
    """Samples of a validation loader, copied out of its batches in the first validation, and kept from then on.

    They are what the model gets: the data set's transform, the loader's workers and `collate_fn` and the batch-transfer
    hooks have run once, for the validation itself. A position counts the samples in the order in which validation reads
    them, from 0, over all processes; in data that are not shuffled it is the index in the data set.

    Args:
        n: How many, at least 1. None takes 8, or, with `per_class`, as many as that gives; with both, `n` is the most.
        indices: These positions, in this order; excludes `n`, `per_class` and `seed`.
        per_class: So many samples of each class, ordered by class. Each batch's labels are looked at until every class
            is complete, which on a GPU waits for the device once a batch, in the first validation.
        dataloader_idx: Which validation loader, counted from 0.
        seed: Chooses the samples at random, the same positions for the same seed, whatever the number of processes.
            None takes the first ones.
        image_key: Where a batch keeps its images: a key, the name of an attribute, or a position; with dots it reaches
            further in: `inputs.image`. The default stands for usual names (`image`, `images`, `pixel_values`, `inputs`,
            `x`) and for the first entry of a tuple.
        label_key: Where a batch keeps its labels, likewise. The default stands for `label`, `labels`, `target`,
            `targets` or `y`, and for the entry of a tuple that holds class indices; where several could be, the
            second one is taken, unless it counts the samples, and a notice says so.
    """

    def __init__(
        self,
        n: int | None = None,
        indices: Sequence[int] | None = None,
        per_class: int | None = None,
        dataloader_idx: int = 0,
        seed: int | None = None,
        image_key: int | str = IMAGE_KEY,
        label_key: int | str = LABEL_KEY,
    ) -> None:
        if indices is not None and (n, per_class, seed) != (None, None, None):
            raise BadInputError(
                "ValidationProbes: `indices` already says which samples to take. "
                f"Leave out n, per_class and seed, got n={n!r}, per_class={per_class!r}, seed={seed!r}."
            )
        self.n = None if n is None else whole_number("n", n, at_least=1)
        self.indices = None if indices is None else distinct_positions("indices", indices)
        self.per_class = None if per_class is None else whole_number("per_class", per_class, at_least=1)
        self.dataloader_idx = whole_number("dataloader_idx", dataloader_idx, at_least=0)
        self.seed = None if seed is None else whole_number("seed", seed, at_least=0)
        self.image_key = batch_key("image_key", image_key)
        self.label_key = batch_key("label_key", label_key)

    def start(self, context: CaptureContext) -> ProbeCollector:
        """Begin to collect; see `ProbeSource.start`."""
        if self.dataloader_idx >= len(context.datasets) > 0:
            raise BadInputError(
                f"dataloader_idx={self.dataloader_idx}: there is no such validation loader; "
                f"there are {len(context.datasets)}, counted from 0."
            )
        return _BatchCollector(self, context, self._options(context))

    def _options(self, context: CaptureContext) -> dict[str, Any]:
        """Those of the `Selection`."""
        if context.positions or self.indices:  # an earlier run without any sample has chosen nothing
            return {"positions": context.positions or self.indices}
        names = find_class_names(self._dataset(context))
        limit = self.n or (None if self.per_class else DEFAULT_COUNT)
        classes = None if names is None else len(names)
        return {"limit": limit, "per_class": self.per_class, "seed": self.seed, "classes": classes}

    def _dataset(self, context: CaptureContext) -> Any:
        return context.datasets[self.dataloader_idx] if context.datasets else None


def as_source(probes: int | Sequence[int] | ProbeSource) -> ProbeSource:
    """Read the callback's short forms: a number is the first so many, a list is these positions.

    Raises:
        TypeError: It is none of these.
        ValueError: The number or a position is out of range.
    """
    if isinstance(probes, ProbeSource):
        return probes
    if isinstance(probes, Integral) and not isinstance(probes, bool):
        return ValidationProbes(n=int(probes))
    if isinstance(probes, Sequence) and not isinstance(probes, (str, bytes)):
        return ValidationProbes(indices=probes)
    raise TypeError(
        f"probes: expected a number, a list of positions or a probe source, got {kind_of(probes)}. "
        "For files use ImageProbes(files=...), for a tensor TensorProbes(images=...)."
    )


class _BatchCollector(ProbeCollector):
    """Keeps copies of the samples that are chosen so far, on the batch's own device."""

    def __init__(self, source: ValidationProbes, context: CaptureContext, options: dict[str, Any]) -> None:
        self._source, self._context, self._options = source, context, options
        self._dataset = source._dataset(context)
        # No sampler deals out what is read in order: each process counts by itself, and the first one's come first.
        is_dealt = not isinstance(self._dataset, IterableDataset)
        self._rank, self._world_size = (context.rank, context.world_size) if is_dealt else (0, 1)
        # A DistributedSampler repeats the first samples at the end, so that all processes have as many.
        self._end = len(self._dataset) if self._world_size > 1 and isinstance(self._dataset, Sized) else None
        self._selection = Selection(**options)
        self._label_key: int | str | None = source.label_key
        self._label_notice: str | None = "" if source.label_key != LABEL_KEY else None  # None: not chosen yet
        self._passed = 0
        self._error: Exception | None = None

    @property
    def is_complete(self) -> bool:
        """Whether no batch that is still to come can change the choice in this process."""
        return self._error is not None or self._selection.is_settled(self._position(self._passed))

    def _position(self, passed: int) -> int:
        return passed * self._world_size + self._rank

    def add(self, batch: Any, dataloader_idx: int) -> None:
        """Copy the samples that are wanted. What is wrong with a batch is said by `samples`, in all processes."""
        if dataloader_idx != self._source.dataloader_idx or self.is_complete:
            return
        try:
            with torch.inference_mode(False):
                self._take(batch)
        except Exception as error:
            # What hangs on the error (frames, the error before it) would keep the batch alive.
            error.__context__ = error.__cause__ = None
            self._error = error.with_traceback(None)

    def _take(self, batch: Any) -> None:
        key, images = self._locate_images(batch)
        slot = IMAGES if isinstance(images, Tensor) else IMAGE_LIST
        positions = [self._position(self._passed + place) for place in range(len(images))]
        self._passed += len(images)
        # Labels are looked for only where they are needed: this is called for every batch of the validation.
        find_labels = cache(lambda: self._find_labels(batch, key, images, positions))
        remark = cache(lambda: self._context.remark(marked()) if self._context.remark is not None else "")
        marked = cache(lambda: replace_entry(batch, images, slot))
        classes = [0] * len(images)
        if self._selection.per_class is not None and positions:
            classes = self._class_of_each(find_labels()[0])
        for place, position in enumerate(positions):
            is_repeat = self._end is not None and position >= self._end
            if is_repeat or not self._selection.wants(position, classes[place]):
                continue
            labels, about_labels = find_labels()
            notice = " ".join(filter(None, (about_labels, remark())))
            label = None if labels is None else map_tensors(labels[place], copy_tensor)
            row = rows_of(marked(), slice(place, place + 1), len(images)) if self._context.keeps_batch else None
            row = map_tensors(row, copy_tensor)
            sample = ProbeSample(position, copy_tensor(images[place]), label, notice, row, slot is IMAGE_LIST)
            self._selection.keep(sample, classes[place])

    def _locate_images(self, batch: Any) -> tuple[int | str, Any]:
        context = self._context
        return locate_images(batch, self._source.image_key, context.given, by_option=context.by_option)

    def _find_labels(
        self, batch: Any, image_key: int | str, images: Any, positions: Sequence[int]
    ) -> tuple[Sequence[Any] | None, str]:
        """The labels of a batch one by one, None if there are none, and what to tell the user about them."""
        if self._label_notice is None:
            key, notice = choose_label_key(batch, image_key, images, positions)
            self._label_key, self._label_notice = key, notice
        if self._label_key is None:
            return None, self._label_notice
        entry = find_entry(batch, "label_key", [self._label_key])
        rows = as_rows(entry, len(positions))
        return rows, self._label_notice if rows is not None else f"{self._label_notice} {not_classes(entry)}".strip()

    def _class_of_each(self, labels: Sequence[Any] | None) -> list[int]:
        column = None if labels is None else as_column(labels, len(labels))
        indices = None if column is None else class_indices(column)
        if indices is None:
            raise BadInputError(
                f"per_class: the labels of a batch are no class indices (label_key={self._source.label_key!r} gives "
                f"{kind_of(labels)}). Use n or indices, or say with label_key where the labels are."
            )
        return [int(index) for index in indices]

    def samples(self) -> list[ProbeSample]:
        """What this process has kept, on the CPU; see `ProbeCollector.samples`."""
        if self._error is not None:
            raise self._error
        return [
            replace(
                kept,
                image=kept.image.cpu(),
                label=map_tensors(kept.label, Tensor.cpu),
                row=map_tensors(kept.row, Tensor.cpu),
            )
            for kept in self._selection.chosen()
        ]

    def finish(self, samples: Sequence[ProbeSample]) -> ProbeSet:
        """Choose among the samples of all processes; see `ProbeCollector.finish`."""
        selection = Selection(**self._options)
        for sample in samples:
            label = 0
            if selection.per_class is not None and sample.label is not None:
                (label,) = self._class_of_each([sample.label])
            if selection.wants(sample.position, label):
                selection.keep(sample, label)
        chosen = selection.chosen()
        images = {f"#{sample.position}": sample.image for sample in chosen}
        is_list = any(sample.is_listed for sample in chosen)
        with torch.inference_mode(False):
            known, problem = join_labels(chosen)
            rows = [sample.row for sample in chosen if sample.row is not None]
            stacked, sizes = padded(images) if is_list else (stack_images(images), None)
            notices = [selection.shortage(), *(sample.notice for sample in chosen), problem]
            return make_probe_set(
                self._dataset,
                stacked,
                known.pop("labels", None),
                images,
                indices=tuple(sample.position for sample in chosen),
                notices=tuple(dict.fromkeys(filter(None, notices))),
                missing=selection.missing(),
                batch=join_rows(rows) if rows else None,
                sizes=sizes,
                **known,
            )

    def preview(self, batch: Any, dataloader_idx: int | None, count: int) -> ProbeSet | None:
        """The first images of the batch; see `ProbeCollector.preview`."""
        if dataloader_idx not in (None, self._source.dataloader_idx):
            return None
        if dataloader_idx is None and self._is_named and not has_names(batch):
            return None
        # What is learnt from a training batch does not hold for the validation: so a collector of its own.
        positions = self._options.get("positions") or ()
        options = {
            "limit": min(count, self._options.get("limit") or len(positions) or count),
            "per_class": count if self._selection.per_class and dataloader_idx is not None else None,
        }
        collector = _BatchCollector(self._source, replace(self._context, rank=0, world_size=1), options)
        collector.add(batch, self._source.dataloader_idx)
        try:
            probes = collector.finish(collector.samples())
        except BadInputError:
            if dataloader_idx is None and not self._is_misnamed(batch):
                return None
            raise
        return replace(probes, indices=None, notices=()) if len(probes) else None

    @property
    def _is_named(self) -> bool:
        """Whether an option says by a name what forward gets, or what the images are."""
        given = list(self._context.given) if self._context.by_option else []
        places = given if self._source.image_key == IMAGE_KEY else [*given, self._source.image_key]
        return any(not str(place).partition(".")[0].lstrip("-").isdecimal() for place in places)

    def _is_misnamed(self, batch: Any) -> bool:
        """Whether a batch has its images under another name than an option says, beyond doubt.

        A training batch may be of another form than one of the validation: a tuple, several views, several loaders. One
        that has images under a single name is not.
        """
        if not self._is_named or not has_one_image_entry(batch):
            return False
        try:
            self._locate_images(batch)
        except BadInputError:
            return True
        return False
