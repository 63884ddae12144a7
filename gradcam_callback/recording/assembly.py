"""From the records of a run, in any order, to recordings: one a callback and stage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gradcam_callback.recording.payload import Array
from gradcam_callback.recording.recording import Recording
from gradcam_callback.recording.records import MOST_MEASURES, UNRECORDED, LayerMaps, Look, ProbePictures, Record

LARGEST = 1 << 31  # bytes of all maps of a layer
MOST_MAPS = 1 << 24  # looks x targets x probes


@dataclass
class _Series:
    """The records of one callback in one stage."""

    looks: list[Look] = field(default_factory=list)
    pictures: dict[str, ProbePictures] = field(default_factory=dict)
    alerts: list[Mapping[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def assemble(name: str, records: Iterable[Record], notes: Sequence[str] = ()) -> list[Recording]:
    """The recordings of a run: first that of the training, and of several callbacks the first one's.

    Args:
        name: The run's.
        records: In any order; one that is there twice is taken once.
        notes: What could not be read.
    """
    unique = {(record.origin.session, record.origin.number, record.origin.callback): record for record in records}
    stages = {"fit": 0, "validate": 1, "test": 2}
    series: dict[tuple[int, str, int], list[Record]] = {}
    for record in sorted(unique.values(), key=lambda record: (record.origin.session, record.origin.number)):
        origin = record.origin
        series.setdefault((stages.get(origin.stage, 3), origin.stage, origin.callback), []).append(record)
    sorted_out = {key: _sort_out(series[key]) for key in sorted(series)}
    return [
        _recording(name, stage, callback, found, [*notes, *found.notes])
        for (_, stage, callback), found in sorted_out.items()
        if found.looks or found.alerts
    ]


def _sort_out(records: Sequence[Record]) -> _Series:
    """The records by kind, without those that a later session has written again."""
    series, stage = _Series(), records[0].origin.stage
    kept = _without_superseded(records, series.notes) if stage == "fit" else records
    for record in kept:
        if isinstance(record, ProbePictures):
            series.pictures.setdefault(record.fingerprint, record)
            continue
        told = {"look": len(series.looks), "wall_time": record.origin.wall_time}
        series.alerts += ({**alert, **told} for alert in record.alerts)
        if isinstance(record, Look):
            series.looks.append(record)
    return series


def _without_superseded(records: Sequence[Record], notes: list[str]) -> list[Record]:
    """Of a training that was resumed from an earlier step, what was done again counts once: the last time."""
    first_steps: dict[tuple[float, str], int] = {}
    for record in records:
        if isinstance(record, Look):
            first_steps.setdefault(record.origin.session, record.origin.step)
    kept: list[Record] = []
    dropped: Counter[int] = Counter()
    for record in records:
        origin = record.origin
        redone = [step for session, step in first_steps.items() if session > origin.session and step <= origin.step]
        if redone and not isinstance(record, ProbePictures):
            dropped[min(redone)] += isinstance(record, Look)
        else:
            kept.append(record)
    for step, count in sorted(dropped.items()):
        if count:
            notes.append(
                f"{count} earlier look(s) were left out: the training was resumed and made them again, "
                f"from step {step} on."
            )
    return kept


def _recording(name: str, stage: str, callback: int, series: _Series, notes: Sequence[str]) -> Recording:
    notes = list(notes)
    looks = _within_memory(series.looks, notes)
    pictures = _used_pictures(looks, series.pictures)
    axes = _Axes.of(looks)
    layers = {layer: _layer(layer, looks, axes, notes) for layer in axes.layers if _fits(layer, looks, axes, notes)}
    numbers = [tuple(getattr(look.origin, item) for look in looks) for item in ("epoch", "step", "wall_time")]
    known = {record.fingerprint: position for position, record in enumerate(pictures)}
    missing = {look.probe_set for look in looks} - set(known)
    if missing:
        notes.append("The probe images of some looks could not be read.")
    last = looks[-1] if looks else None
    return Recording(
        name=name,
        stage=stage,
        callback=callback,
        method=last.method if last else "",
        substitute=next((look.substitute for look in reversed(looks) if look.substitute), ""),
        task=last.task if last else "",
        targets=axes.targets,
        class_names=next((record.class_names for record in reversed(pictures) if record.class_names), None),
        epochs=np.array(numbers[0], np.int64),
        steps=np.array(numbers[1], np.int64),
        wall_times=np.array(numbers[2], np.float64),
        **_by_layer(layers),
        measures=_measures(looks, axes, layers),
        layouts={layer.name: layer.layout for look in looks for layer in look.layers},
        extents={layer: found["extents"] for layer, found in layers.items() if found["extents"] is not None},
        **_by_target(looks, axes),
        **_by_probe(looks, axes),
        pictures=tuple(pictures),
        probe_set_of=np.array([known.get(look.probe_set, -1) for look in looks], np.int64),
        alerts=tuple(series.alerts),
        notes=tuple(dict.fromkeys(notes)),
    )


def _within_memory(looks: Sequence[Look], notes: list[str]) -> list[Look]:
    """All looks; where their arrays would take too much memory, those that are like the last one.

    Each look takes the room of all targets of the run, and of the most probes.
    """
    axes = _Axes.of(looks)
    if len(looks) * len(axes.targets) * axes.probes <= MOST_MAPS:
        return list(looks)
    last = looks[-1]
    alike = [look for look in looks if look.targets == last.targets and look.predictions.size == last.predictions.size]
    most = max(1, MOST_MAPS // last.classes.size)
    kept = alike[-most:]
    notes.append(f"{len(looks) - len(kept)} earlier look(s) were left out: together they would take too much memory.")
    return kept


def _used_pictures(looks: Sequence[Look], pictures: Mapping[str, ProbePictures]) -> list[ProbePictures]:
    """Those of the looks, in the order of their first look."""
    order = dict.fromkeys((look.probe_set, look.predictions.size) for look in looks)
    return [pictures[key] for key, probes in order if key in pictures and len(pictures[key].names) == probes]


# Arrays


@dataclass(frozen=True)
class _Axes:
    """What all looks have together."""

    layers: tuple[str, ...]
    targets: tuple[str, ...]
    probes: int

    @classmethod
    def of(cls, looks: Sequence[Look]) -> _Axes:
        layers = dict.fromkeys(layer.name for look in looks for layer in look.layers)
        targets = dict.fromkeys(title for look in looks for title in target_titles(look))
        return cls(tuple(layers), tuple(targets), max((look.predictions.size for look in looks), default=0))

    def rows(self, look: Look) -> list[int]:
        """Where the targets of a look stand."""
        return [self.targets.index(title) for title in target_titles(look)]


def target_titles(look: Look) -> list[str]:
    """The titles of a look's targets; equal ones are numbered."""
    return told_apart(look.targets)


def told_apart(texts: Iterable[str]) -> list[str]:
    """The same texts, equal ones with a number: "mean", "mean (2)"."""
    different: dict[str, None] = {}
    equal: Counter[str] = Counter()
    for text in texts:
        name = text
        while name in different:
            equal[text] += 1
            name = f"{text} ({equal[text] + 1})"
        different[name] = None
    return list(different)


def _by_layer(layers: Mapping[str, Mapping[str, Array]]) -> dict[str, Any]:
    names = ("levels", "peaks", "state_codes", "flags", "gradient_norms")
    return {name: {layer: found[name] for layer, found in layers.items()} for name in names}


def _fits(name: str, looks: Sequence[Look], axes: _Axes, notes: list[str]) -> bool:
    """Whether the maps of a layer are no more than memory is to be taken for; asked before it is taken."""
    cells = max(math.prod(layer.levels.shape[2:]) for look in looks for layer in look.layers if layer.name == name)
    size = len(looks) * len(axes.targets) * axes.probes * cells
    if size > LARGEST:
        notes.append(f"The maps of {name!r} would take {size / 1e9:.0f} GB and were left out.")
    return size <= LARGEST


def _layer(name: str, looks: Sequence[Look], axes: _Axes, notes: list[str]) -> dict[str, Array]:
    """The arrays of one layer over all looks."""
    found = [next((layer for layer in look.layers if layer.name == name), None) for look in looks]
    space, other = _common_space(name, found, notes)
    shape = (len(looks), len(axes.targets), axes.probes)
    arrays: dict[str, Any] = {
        "levels": np.zeros((*shape, *space), np.uint8),
        "peaks": np.full(shape, np.nan, np.float32),
        "state_codes": np.full(shape, UNRECORDED, np.uint8),
        "flags": np.zeros(shape, np.uint8),
        "gradient_norms": np.full(shape, np.nan, np.float32),
        "extents": None,
    }
    if any(layer is not None and layer.extents is not None for layer in found):
        arrays["extents"] = np.full((len(looks), axes.probes, 4), np.nan, np.float32)
    for number, (look, layer) in enumerate(zip(looks, found, strict=True)):
        if layer is not None:
            _fill(arrays, number, axes.rows(look), layer, is_drawn=number not in other)
    return arrays


def _measures(looks: Sequence[Look], axes: _Axes, layers: Iterable[str]) -> dict[str, dict[str, Array]]:
    """Each measure of each layer that has it, over all looks."""
    found: dict[str, dict[str, Array]] = {}
    shape = (len(looks), len(axes.targets), axes.probes)
    for number, look in enumerate(looks):
        for layer in look.layers:
            for name, values in layer.measures.items() if layer.name in layers else ():
                if name not in found and len(found) >= MOST_MEASURES:
                    continue
                of_layers = found.setdefault(name, {})
                array = of_layers.setdefault(layer.name, np.full(shape, np.nan, np.float32))
                array[number, axes.rows(look), : values.shape[1]] = values
    return found


def _common_space(name: str, found: Sequence[LayerMaps | None], notes: list[str]) -> tuple[tuple[int, ...], set[int]]:
    """The size of a layer's maps in its last look, and the looks with maps of another size."""
    sizes = {number: layer.levels.shape[2:] for number, layer in enumerate(found) if layer is not None}
    last = sizes[max(sizes)]
    other = {number for number, size in sizes.items() if size != last}
    if other:
        was, now = (" x ".join(map(str, size)) for size in (sizes[min(other)], last))
        notes.append(
            f"{len(other)} look(s) have maps of {was} cells at {name!r}, and the last one of {now}: only maps "
            "of one size can be compared, so those are left out."
        )
    return last, other


def _fill(arrays: dict[str, Any], number: int, rows: list[int], layer: LayerMaps, *, is_drawn: bool) -> None:
    """One look of one layer into the arrays."""
    probes = slice(layer.peaks.shape[1])
    arrays["state_codes"][number, rows, probes] = layer.states if is_drawn else UNRECORDED
    arrays["flags"][number, rows, probes] = layer.flags
    arrays["gradient_norms"][number, rows, probes] = layer.norms
    if is_drawn:
        arrays["levels"][number, rows, probes] = layer.levels
        arrays["peaks"][number, rows, probes] = layer.peaks
        if layer.extents is not None:
            arrays["extents"][number, probes] = layer.extents


def _by_target(looks: Sequence[Look], axes: _Axes) -> dict[str, Any]:
    shape = (len(looks), len(axes.targets), axes.probes)
    classes = np.full(shape, -1, np.int32)
    scores, probabilities = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    boxes = np.full((*shape, 4), np.nan, np.float32) if any(look.boxes is not None for look in looks) else None
    for number, look in enumerate(looks):
        place = number, axes.rows(look), slice(look.predictions.size)
        classes[place], scores[place], probabilities[place] = look.classes, look.scores, look.target_probabilities
        if boxes is not None and look.boxes is not None:
            boxes[place] = look.boxes
    return {"classes": classes, "scores": scores, "probabilities": probabilities, "boxes": boxes}


def _by_probe(looks: Sequence[Look], axes: _Axes) -> dict[str, Any]:
    shape = (len(looks), axes.probes)
    predictions = np.full(shape, -1, np.int32)
    told, labelled = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    for number, look in enumerate(looks):
        place = number, slice(look.predictions.size)
        predictions[place], told[place] = look.predictions, look.prediction_probabilities
        labelled[place] = look.label_probabilities
    return {"predictions": predictions, "prediction_probabilities": told, "label_probabilities": labelled}


def name_of(recording: Recording) -> str:
    """What tells a recording from the others of its run: "fit", "validate", "fit, callback 2"."""
    return recording.stage + (f", callback {recording.callback}" if recording.callback > 1 else "")


def together(recordings: Sequence[Recording]) -> Recording:
    """The first of a run's recordings, with the others at hand."""
    return replace(recordings[0], others={name_of(other): other for other in recordings[1:]})
