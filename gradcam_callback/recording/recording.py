"""The recording of a run as arrays.

Axes: `E` looks in the order of time, `T` targets, `N` probes, `h w` the map (of signals `w`, of volumes `d h w`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradcam_callback.recording.payload import Array
from gradcam_callback.recording.records import STATES, UNRECORDED, ProbePictures


class LayerArrays(Mapping[str, Array]):
    """Layer to the map of all looks, float32, made of the recorded levels when it is asked for.

    Args:
        levels: Layer to uint8 `(E, T, N, h, w)`.
        peaks: Layer to float32 `(E, T, N)`; NaN where there is no map.
    """

    def __init__(self, levels: Mapping[str, Array], peaks: Mapping[str, Array]) -> None:
        self._levels, self._peaks = levels, peaks

    def __getitem__(self, layer: str) -> Array:
        levels, peaks = self._levels[layer], self._peaks[layer]
        peaks = peaks.reshape(peaks.shape + (1,) * (levels.ndim - peaks.ndim))
        maps: Array = levels * (peaks / np.float32(255))
        return maps

    def __iter__(self) -> Iterator[str]:
        return iter(self._levels)

    def __len__(self) -> int:
        return len(self._levels)


@dataclass(frozen=True)
class RecordedProbes:
    """The probes of a recording.

    Attributes:
        fingerprint: SHA-256 over images and labels, in hexadecimal.
        names: One a probe.
        labels: A class index a probe; None where there is none.
        label_texts: What the data say of each, in words; "" where they say nothing.
        images: `(H, W, 3)` uint8 a probe, as the viewer shows it.
    """

    fingerprint: str
    names: tuple[str, ...]
    labels: tuple[int | None, ...]
    label_texts: tuple[str, ...]
    images: Sequence[NDArray[np.uint8]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, record: ProbePictures) -> RecordedProbes:
        """The probes of a record."""
        return cls(record.fingerprint, record.names, record.labels, record.label_texts, _Pictures(record))


class _Pictures(Sequence[NDArray[np.uint8]]):
    """Pictures that are decoded when they are asked for."""

    def __init__(self, record: ProbePictures) -> None:
        self._record = record

    def __len__(self) -> int:
        return len(self._record.images)

    def __getitem__(self, index: Any) -> Any:
        image = self._record.images[index].content
        return np.asarray(Image.open(io.BytesIO(image), formats=("PNG", "JPEG")).convert("RGB"))


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class Recording:
    """All looks of one callback in one stage of a run.

    What a look does not hold (a layer, target or probe that another look of the run has) is NaN in it, with the state
    "unrecorded".

    Attributes:
        name: The run's.
        stage: "fit", "validate" or "test".
        callback: Which of the trainer's callbacks of this kind, counted from 1.
        method: How the maps were computed.
        substitute: The method of maps where there was no gradient; "" where there are none.
        task: What was explained, e.g. "classification".
        targets: What the targets are called, `T` of them.
        class_names: By index; None where they are not known.
        epochs: `(E,)` int64.
        steps: `(E,)` int64.
        wall_times: `(E,)` float64, seconds since 1970.
        levels: Layer to uint8 `(E, T, N, h, w)`: `levels / 255 * peaks` is the map.
        peaks: Layer to float32 `(E, T, N)`, each map's maximum; NaN where there is no map.
        state_codes: Layer to uint8 `(E, T, N)`, positions in the list of states; 255 is "unrecorded".
        flags: Layer to uint8 `(E, T, N)`: 1 the map is empty, 2 it was drawn across a cut, 4 it is
            by another method, because there is no gradient.
        gradient_norms: Layer to float32 `(E, T, N)`, L2; NaN where there is no gradient.
        measures: Name to layer to float32 `(E, T, N)`: "drift", "focus", "border_energy", and where there are regions
            "energy_inside" and "pointing_game"; NaN where there is none.
        layouts: Layer to how its output lies in space, in words.
        extents: Layer to float32 `(E, N, 4)`, which part of its map each image is: top, left, bottom, right in cells;
            NaN where it is all of it. Only layers that have any are in it.
        classes: `(E, T, N)` int32, the class that each map explains; -1 where it is none.
        scores: `(E, T, N)` float32.
        probabilities: `(E, T, N)` float32, of the class explained; NaN where there is none.
        predictions: `(E, N)` int32; -1 where there is none.
        prediction_probabilities: `(E, N)` float32; NaN where there is none.
        label_probabilities: `(E, N)` float32; NaN where there is none.
        boxes: `(E, T, N, 4)` float32, the box explained; None where no look has one.
        pictures: The probes of the run as they were written; more than one record only where they changed.
        probe_set_of: `(E,)` int64, a position in `probe_sets`; -1 where their record could not be read.
        alerts: The records of alerts, in the order of time, as in `alerts.jsonl`; `look` is the position of the look at
            or after each, and the number of looks where none came after it.
        notes: What could not be read, or was left out, one sentence each.
        others: The run's other recordings by name: of further callbacks, and of other stages.
    """

    name: str
    stage: str
    callback: int
    method: str
    substitute: str
    task: str
    targets: tuple[str, ...]
    class_names: tuple[str, ...] | None
    epochs: Array
    steps: Array
    wall_times: Array
    levels: Mapping[str, Array]
    peaks: Mapping[str, Array]
    state_codes: Mapping[str, Array]
    flags: Mapping[str, Array]
    gradient_norms: Mapping[str, Array]
    measures: Mapping[str, Mapping[str, Array]]
    layouts: Mapping[str, str]
    extents: Mapping[str, Array]
    classes: Array
    scores: Array
    probabilities: Array
    predictions: Array
    prediction_probabilities: Array
    label_probabilities: Array
    boxes: Array | None
    pictures: tuple[ProbePictures, ...]
    probe_set_of: Array
    alerts: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()
    others: Mapping[str, Recording] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of looks."""
        return len(self.epochs)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of its own layers."""
        return tuple(self.levels)

    @property
    def maps(self) -> Mapping[str, Array]:
        """Layer to the maps of all looks, float32 `(E, T, N, h, w)`, at least 0; NaN where there is no map.

        They are recorded in 255 steps: the error is at most 1/255 of a map's maximum. The layers of the run's other
        callbacks are here, too, with those callbacks' looks, targets and probes; see `others`.
        """
        further = [other for other in self.others.values() if other.stage == self.stage]
        levels, peaks = dict(self.levels), dict(self.peaks)
        for other in further:
            levels, peaks = {**other.levels, **levels}, {**other.peaks, **peaks}
        return LayerArrays(levels, peaks)

    @property
    def states(self) -> Mapping[str, Array]:
        """Layer to a word a map, `(E, T, N)`: "ok", "none", "zero", "non_finite", "absent" or "unrecorded"."""
        words = np.full(UNRECORDED + 1, "unrecorded", dtype="U10")
        words[: len(STATES)] = STATES
        return {layer: words[codes] for layer, codes in self.state_codes.items()}

    @property
    def probe_sets(self) -> tuple[RecordedProbes, ...]:
        """The probes of the run; more than one only where they changed."""
        return tuple(map(RecordedProbes.of, self.pictures))

    @property
    def probes(self) -> RecordedProbes:
        """The probes of the last look.

        Raises:
            LookupError: Their record could not be read.
        """
        position = int(self.probe_set_of[-1]) if len(self) else len(self.pictures) - 1
        if position < 0:
            raise LookupError(f"The probe images of {self.name!r} could not be read. {' '.join(self.notes)}".strip())
        return self.probe_sets[position]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{layer} {self.levels[layer].shape}" for layer in self.layers)
        return f"Recording({self.name!r}, {len(self)} looks, targets {', '.join(self.targets)}; maps: {shapes})"

    def to_html(self) -> str:
        """The viewer and this run's data as one HTML file, which needs neither network nor TensorBoard."""
        from gradcam_callback.recording.bundle import report_of  # the viewer's files are read for nobody else

        return report_of([self])

    def _repr_html_(self) -> str:
        """The viewer, for notebooks."""
        page = escape(self.to_html(), quote=True)
        return f'<iframe title="Grad-CAM" srcdoc="{page}" style="width:100%;height:900px;border:0"></iframe>'
