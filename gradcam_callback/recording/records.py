"""The records of a run: looks, probe images and alerts, each packed alone.

Axes: `T` targets, `N` probes, `S` the space of a layer's maps (`h w`; of signals `w`, of volumes `d h w`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from gradcam_callback.recording.payload import Array, Room, UnreadableError, pack, unpack

STATES = ("ok", "none", "zero", "non_finite", "absent")
"""What a gradient is worth, by its code in a record."""
UNRECORDED = 255
"""The code of what a look does not hold."""
LARGEST_NUMBER = 1 << 53  # JavaScript counts as far
MOST_TARGETS = 1 << 10
MOST_MEASURES = 32
EMPTY, BRIDGED, SUBSTITUTED = 1, 2, 4
"""Flags of a map: every channel speaks against the class; it was drawn across a cut; it is by another method."""

_TYPES = {
    **dict.fromkeys(("levels", "states", "flags"), "uint8"),
    **dict.fromkeys(("classes", "predictions"), "int32"),
    **dict.fromkeys(("peaks", "norms", "extents", "boxes", "scores"), "float32"),
    **dict.fromkeys(("target_probabilities", "prediction_probabilities", "label_probabilities"), "float32"),
}
_MEASURE = "measure/"
_OF_PROBES = ("fingerprint", "names", "labels", "label_texts", "class_names")
_OF_LOOKS = ("method", "substitute", "task", "targets", "probe_set", "alerts")
_OF_ALERTS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("status", "subject", "message", "remedy", "alternative", "url"), (str,)),
    **dict.fromkeys(("layer", "cause"), (str, type(None))),
    **dict.fromkeys(("step", "epoch"), (int,)),
    **dict.fromkeys(("probes", "targets"), (list,)),
    "concerns_all": (bool,),
    "location": (dict, type(None)),
}


@dataclass(frozen=True)
class Origin:
    """Which record it is.

    Attributes:
        stage: "fit", "validate" or "test".
        callback: Which of the trainer's callbacks of this kind wrote it, counted from 1.
        session: What tells one run of a Trainer from another in the same folder: its start in seconds since 1970, and
            a random text.
        number: Of the record in its session, from 0.
        epoch: `trainer.current_epoch`.
        step: `trainer.global_step`.
        wall_time: In seconds since 1970.
    """

    stage: str
    callback: int
    session: tuple[float, str]
    number: int
    epoch: int
    step: int
    wall_time: float

    @classmethod
    def unknown(cls) -> Origin:
        """Of a record that is not written yet."""
        return cls("", 0, (0.0, ""), 0, 0, 0, 0.0)

    @classmethod
    def from_header(cls, given: Mapping[str, Any]) -> Origin:
        """What a record's header says."""
        start, name = given["session"]
        number, epoch, step = (int(given[item]) for item in ("number", "epoch", "step"))
        if not all(0 <= count < LARGEST_NUMBER for count in (number, epoch, step)):
            raise UnreadableError(f"its number, epoch and step are {number}, {epoch} and {step}")
        session, wall_time = (float(start), str(name)), float(given["wall_time"])
        if not (math.isfinite(session[0]) and math.isfinite(wall_time)):
            raise UnreadableError(f"its times are {start} and {wall_time}")
        return cls(str(given["stage"]), int(given["callback"]), session, number, epoch, step, wall_time)


@dataclass(frozen=True, eq=False)
class LayerMaps:
    """What a look holds of one layer.

    Attributes:
        name: The layer's.
        layout: How its output lies in space, in words.
        levels: `(T, N, *S)` uint8; a value of the map is `level / 255 * peak`.
        peaks: `(T, N)` float32, each map's maximum; NaN where there is no map.
        states: `(T, N)` uint8, a position in `STATES`.
        flags: `(T, N)` uint8, `EMPTY`, `BRIDGED` and `SUBSTITUTED`.
        norms: `(T, N)` float32, the L2 norm of each gradient; NaN where there is none.
        extents: `(N, 4)` float32, which part of its map each image is: top, left, bottom, right in cells; None where it
            is all of it.
        measures: Name to `(T, N)` float32, as of `measures`; NaN where there is none.
    """

    name: str
    layout: str
    levels: Array
    peaks: Array
    states: Array
    flags: Array
    norms: Array
    extents: Array | None = None
    measures: Mapping[str, Array] = field(default_factory=dict)

    def check(self, shape: tuple[int, int]) -> None:
        """Make sure that the arrays belong together.

        Raises:
            UnreadableError: They do not.
        """
        if self.levels.shape[:2] != shape or not 3 <= self.levels.ndim <= 5 or not self.levels.size:
            raise UnreadableError(f"the maps of {self.name!r} have the shape {self.levels.shape}")
        if any(array.shape != shape for array in (self.peaks, self.states, self.flags, self.norms)):
            raise UnreadableError(f"the arrays of {self.name!r} differ in their shapes")
        if self.extents is not None and self.extents.shape != (shape[1], 4):
            raise UnreadableError(f"the extents of {self.name!r} have the shape {self.extents.shape}")
        if len(self.measures) > MOST_MEASURES:
            raise UnreadableError(f"there are {len(self.measures)} measures of {self.name!r}")
        for name, values in self.measures.items():
            if values.shape != shape or values.dtype != np.float32:
                raise UnreadableError(f"the measure {name!r} of {self.name!r} has the shape {values.shape}")


@dataclass(frozen=True, eq=False)
class Look:
    """One look: the maps of all layers and targets, and what was known of the probes then.

    Attributes:
        origin: Which record it is.
        method: How the maps were computed.
        task: What was explained, e.g. "classification".
        targets: What the targets are called, `T` of them.
        probe_set: The fingerprint of the probes.
        layers: One a layer.
        classes: `(T, N)` int32, the class that each map explains; -1 where it is none.
        scores: `(T, N)` float32.
        target_probabilities: `(T, N)` float32; NaN where there is none.
        predictions: `(N,)` int32; -1 where there is none.
        prediction_probabilities: `(N,)` float32; NaN where there is none.
        label_probabilities: `(N,)` float32; NaN where there is none.
        boxes: `(T, N, 4)` float32, the box explained, in pixels of the image; None where there is none.
        alerts: Those that are new.
        substitute: The method of maps with the flag `SUBSTITUTED`; "" where there are none.
    """

    KIND: ClassVar[str] = "look"

    origin: Origin
    method: str
    task: str
    targets: tuple[str, ...]
    probe_set: str
    layers: tuple[LayerMaps, ...]
    classes: Array
    scores: Array
    target_probabilities: Array
    predictions: Array
    prediction_probabilities: Array
    label_probabilities: Array
    boxes: Array | None = None
    alerts: tuple[Mapping[str, Any], ...] = ()
    substitute: str = ""

    def check(self) -> None:
        """Make sure that the arrays belong together.

        Raises:
            UnreadableError: They do not.
        """
        shape = (len(self.targets), self.predictions.size)
        by_target = (self.classes, self.scores, self.target_probabilities)
        by_probe = (self.predictions, self.prediction_probabilities, self.label_probabilities)
        if any(array.shape != shape for array in by_target) or any(array.shape != shape[1:] for array in by_probe):
            raise UnreadableError("the numbers of targets and probes do not agree")
        if 0 in shape or shape[0] > MOST_TARGETS:
            raise UnreadableError(f"it is of {shape[0]} targets and {shape[1]} probes")
        if self.boxes is not None and self.boxes.shape != (*shape, 4):
            raise UnreadableError(f"the boxes have the shape {self.boxes.shape}")
        for layer in self.layers:
            layer.check(shape)


@dataclass(frozen=True, eq=False)
class ProbeImage:
    """The picture of one probe.

    Attributes:
        content: The bytes of a PNG or JPEG file.
        width: Of the image that the model sees, in pixels; the picture may be smaller.
        height: Likewise.
        slices: How many slices of a volume stand under one another in the picture.
    """

    content: bytes
    width: int
    height: int
    slices: int = 1

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Width, height and slices."""
        return self.width, self.height, self.slices

    @property
    def media_type(self) -> str:
        """`image/png` or `image/jpeg`."""
        return "image/png" if self.content.startswith(b"\x89PNG") else "image/jpeg"


@dataclass(frozen=True, eq=False)
class ProbePictures:
    """The probes of a run: written once, and again where they change.

    Attributes:
        origin: Which record it is.
        fingerprint: Of the probes' images and labels.
        names: One a probe.
        labels: A class index a probe; None where there is none.
        label_texts: What the data say of a probe, in words; "" where they say nothing.
        images: One a probe.
        class_names: By index; None where they are not known.
    """

    KIND: ClassVar[str] = "probes"

    origin: Origin
    fingerprint: str
    names: tuple[str, ...]
    labels: tuple[int | None, ...]
    label_texts: tuple[str, ...]
    images: tuple[ProbeImage, ...]
    class_names: tuple[str, ...] | None = None

    def check(self) -> None:
        """Make sure that there is one of each a probe.

        Raises:
            UnreadableError: There is not.
        """
        if len({len(self.names), len(self.labels), len(self.label_texts), len(self.images)}) != 1:
            raise UnreadableError("it does not hold one name, label and picture a probe")
        if not all(0 < size < LARGEST_NUMBER for image in self.images for size in image.sizes):
            raise UnreadableError("a picture in it has no size")


@dataclass(frozen=True, eq=False)
class AlertRecords:
    """Alerts that came without a look.

    Attributes:
        origin: Which record it is.
        alerts: Those that are new.
    """

    KIND: ClassVar[str] = "alerts"

    origin: Origin
    alerts: tuple[Mapping[str, Any], ...] = field(default=())


Record = Look | ProbePictures | AlertRecords


def to_bytes(record: Record) -> bytes:
    """A record as it is written."""
    header: dict[str, Any] = {"kind": record.KIND, "origin": vars(record.origin)}
    if isinstance(record, AlertRecords):
        return pack({**header, "alerts": record.alerts}, {})
    if isinstance(record, ProbePictures):
        header |= {name: getattr(record, name) for name in _OF_PROBES}
        header["sizes"] = [image.sizes for image in record.images]
        pictures = {str(n): np.frombuffer(image.content, np.uint8) for n, image in enumerate(record.images)}
        return pack(header, pictures)
    header |= {name: getattr(record, name) for name in _OF_LOOKS}
    header["layers"] = [[layer.name, layer.layout] for layer in record.layers]
    arrays = _arrays_of(record, "")
    for number, layer in enumerate(record.layers):
        arrays |= _arrays_of(layer, f"{number}/")
        arrays |= {f"{number}/{_MEASURE}{name}": values for name, values in layer.measures.items()}
    return pack(header, arrays)


def from_bytes(payload: bytes, room: Room | None = None) -> Record:
    """The record that was written.

    Args:
        payload: As `to_bytes` returned it.
        room: For this record and others; None: for this one alone.

    Raises:
        UnreadableError: It cannot be read; the message says why.
    """
    header, arrays = unpack(payload, room)
    try:
        record = _of_kind(header, arrays)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"something is missing in it ({type(error).__name__}: {error})") from error
    if not isinstance(record, AlertRecords):
        record.check()
    return record


def _of_kind(header: dict[str, Any], arrays: Mapping[str, Array]) -> Record:
    kind, origin = header["kind"], Origin.from_header(header["origin"])
    if kind == AlertRecords.KIND:
        return AlertRecords(origin, _alerts(header))
    if kind == ProbePictures.KIND:
        names = header["class_names"]
        images = (
            ProbeImage(arrays[str(n)].tobytes(), int(width), int(height), int(slices))
            for n, (width, height, slices) in enumerate(header["sizes"])
        )
        return ProbePictures(
            origin,
            str(header["fingerprint"]),
            names=tuple(map(str, header["names"])),
            labels=tuple(None if label is None else int(label) for label in header["labels"]),
            label_texts=tuple(map(str, header["label_texts"])),
            images=tuple(images),
            class_names=None if names is None else tuple(map(str, names)),
        )
    if kind != Look.KIND:
        raise UnreadableError(f"it is of an unknown kind, {kind!r}")
    layers = tuple(
        LayerMaps(
            str(name), str(layout), **_arrays_for(LayerMaps, arrays, f"{number}/"), measures=_measures(arrays, number)
        )
        for number, (name, layout) in enumerate(header["layers"])
    )
    return Look(
        origin,
        method=str(header["method"]),
        task=str(header["task"]),
        targets=tuple(map(str, header["targets"])),
        probe_set=str(header["probe_set"]),
        layers=layers,
        alerts=_alerts(header),
        substitute=str(header.get("substitute", "")),
        **_arrays_for(Look, arrays, ""),
    )


def _measures(arrays: Mapping[str, Array], layer: int) -> dict[str, Array]:
    start = f"{layer}/{_MEASURE}"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def _alerts(header: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    alerts = tuple(header["alerts"])
    if not all(isinstance(alert, dict) for alert in alerts):
        raise UnreadableError("an alert in it is no record")
    for alert in alerts:
        _check_alert(alert)
    return alerts


def _check_alert(alert: Mapping[str, Any]) -> None:
    for name, types in _OF_ALERTS.items():
        if name in alert and not isinstance(alert[name], types):
            raise UnreadableError(f"an alert in it has no usable {name}")
    numbers = [alert.get("step", 0), alert.get("epoch", 0), *alert.get("probes", [])]
    if not all(isinstance(number, int) and 0 <= number < LARGEST_NUMBER for number in numbers):
        raise UnreadableError("an alert in it has no usable step, epoch or probes")


def _arrays_of(part: Look | LayerMaps, prefix: str) -> dict[str, Array]:
    values: Sequence[tuple[str, Any]] = [(item.name, getattr(part, item.name)) for item in fields(part)]
    return {prefix + name: value for name, value in values if isinstance(value, np.ndarray)}


def _arrays_for(kind: type[Look] | type[LayerMaps], arrays: Mapping[str, Array], prefix: str) -> dict[str, Any]:
    names = [item.name for item in fields(kind) if prefix + item.name in arrays]
    for name in names:
        if arrays[prefix + name].dtype.name != _TYPES.get(name):
            raise UnreadableError(f"the array {prefix + name!r} is of the type {arrays[prefix + name].dtype.name}")
    return {name: arrays[prefix + name] for name in names}
