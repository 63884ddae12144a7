"""Recorded runs made up for tests and the benchmark: a spot that wanders from a corner to the middle of each image."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from gradcam_callback.recording.records import LayerMaps, Look, Origin, ProbeImage, ProbePictures, Record
from gradcam_callback.recording.summaries import RecordTags, summary_of

NAN = float("nan")


@dataclass(frozen=True)
class MadeUpRun:
    """What a run holds.

    Attributes:
        looks: How many.
        probes: How many.
        layers: Their names.
        cells: `(h, w)` of a map.
        targets: Their titles.
        side: Of the images, in pixels.
        class_names: By index.
        alerts: Of each look, by its number.
        nulls: Which probes have no gradient at which looks.
        seed: Of the images and of everything else.
        first: The number of the first look.
        stage: "fit", mostly.
        callback: Counted from 1.
        session: Its start and a random text.
        peak: The largest value of the last look's maps.
    """

    looks: int = 12
    probes: int = 6
    layers: tuple[str, ...] = ("net.stage",)
    cells: tuple[int, int] = (7, 7)
    targets: tuple[str, ...] = ("predicted", "label")
    side: int = 48
    class_names: tuple[str, ...] = ("cat", "dog", "bird")
    alerts: Mapping[int, Sequence[Mapping[str, Any]]] = ()  # type: ignore[assignment]
    nulls: Mapping[int, Sequence[int]] = ()  # type: ignore[assignment]
    seed: int = 0
    first: int = 0
    stage: str = "fit"
    callback: int = 1
    session: tuple[float, str] = (1.0, "a")
    peak: float = 1.5

    @property
    def labels(self) -> list[int]:
        return [probe % len(self.class_names) for probe in range(self.probes)]

    def origin(self, number: int, epoch: int) -> Origin:
        return Origin(self.stage, self.callback, self.session, number, epoch, 10 * (epoch + 1), 1e9 + epoch)

    def records(self) -> Iterator[Record]:
        yield ProbePictures(
            self.origin(0, self.first),
            fingerprint=f"probes {self.seed} {self.probes} {self.side}",
            names=tuple(f"#{probe}" for probe in range(self.probes)),
            labels=tuple(self.labels),
            label_texts=tuple(f"label: {self.class_names[label]}" for label in self.labels),
            images=tuple(self.image(probe) for probe in range(self.probes)),
            class_names=self.class_names,
        )
        for look in range(self.looks):
            yield self.look(look)

    def image(self, probe: int) -> ProbeImage:
        """A grey square in the middle of noise, red, green or blue by its label."""
        rng = np.random.default_rng((self.seed, probe))
        pixels = rng.integers(20, 80, (self.side, self.side, 3), dtype=np.uint8)
        third = self.side // 3
        pixels[third : 2 * third, third : 2 * third, self.labels[probe] % 3] = 230
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png" if self.side <= 64 else "jpeg")
        return ProbeImage(buffer.getvalue(), self.side, self.side)

    def progress(self, look: int) -> float:
        return look / max(1, self.looks - 1)

    def look(self, look: int) -> Look:
        """The label's probability grows with the look; the first third of the looks is wrong."""
        T, N = len(self.targets), self.probes
        share, labels = self.progress(look), np.array(self.labels, np.int32)
        predictions = labels if share > 1 / 3 else (labels + 1) % len(self.class_names)
        of_labels = np.full(N, 0.2 + 0.7 * share, np.float32)
        of_predictions = of_labels if share > 1 / 3 else 1 - of_labels
        return Look(
            self.origin(look + 1, self.first + look),
            method="gradcam",
            task="classification",
            targets=self.targets,
            probe_set=f"probes {self.seed} {self.probes} {self.side}",
            layers=tuple(self.maps(name, look) for name in self.layers),
            classes=np.stack([predictions if title == "predicted" else labels for title in self.targets]),
            scores=np.full((T, N), 3 * share, np.float32),
            target_probabilities=np.stack(
                [of_predictions if title == "predicted" else of_labels for title in self.targets]
            ),
            predictions=predictions.astype(np.int32),
            prediction_probabilities=of_predictions,
            label_probabilities=of_labels,
            alerts=tuple(dict(self.alerts).get(look, ())),
        )

    def maps(self, name: str, look: int) -> LayerMaps:
        T, N, (h, w) = len(self.targets), self.probes, self.cells
        share = self.progress(look)
        y, x = np.mgrid[:h, :w]
        spot = np.exp(-((y - share * h / 2) ** 2 + (x - share * w / 2) ** 2) / (h * w / 18))
        levels = np.broadcast_to(np.round(255 * spot / spot.max()), (T, N, h, w)).astype(np.uint8)
        # Real maps are not alike, and do not compress as if they were.
        levels = levels - np.minimum(levels, np.random.default_rng((self.seed, look)).integers(0, 24, levels.shape))
        peaks = np.full((T, N), self.peak * (0.5 + share) / 1.5, np.float32)
        states = np.zeros((T, N), np.uint8)
        for probe in dict(self.nulls).get(look, ()):
            states[:, probe], peaks[:, probe] = 1, NAN
        norms = np.where(np.isnan(peaks), NAN, 1 + share).astype(np.float32)
        flags = np.zeros((T, N), np.uint8)
        return LayerMaps(name, "channels first", levels.astype(np.uint8), peaks, states, flags, norms)


def alert(status: str, look: int, **more: Any) -> dict[str, Any]:
    """An alert's record, as `Alert.as_record` makes it, with the code around its line."""
    location = {
        "file": "net.py",
        "line": 12,
        "function": "forward",
        "code": "maps = maps.detach()",
        "module": "net",
        "detail": [],
        "around": [[11, "maps = self.stage(x)"], [12, "maps = maps.detach()"], [13, "return self.head(maps)"]],
    }
    return {
        "status": status,
        "step": 10 * (look + 1),
        "epoch": look,
        "subject": "net.stage",
        "layer": "net.stage",
        "cause": "detached",
        "probes": [1],
        "concerns_all": False,
        "targets": ["predicted"],
        "message": "At 'net.stage' the gradient is None for probe 1.",
        "remedy": "Take detach() out of the way.",
        "location": location,
        "url": "https://example.org/why#detached",
        **more,
    }


def write_run(folder: Path, run: MadeUpRun | Sequence[Record], *, begins: bool = True) -> Path:
    """Write the records of a run into an event file; `begins` False appends to the one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    records = list(run.records() if isinstance(run, MadeUpRun) else run)
    tags = RecordTags()
    path = folder / "events.out.tfevents.1000000000.host.1.0"
    with path.open("wb" if begins else "ab") as file:
        frames = RecordWriter(file)
        if begins:
            frames.write(Event(wall_time=1e9, file_version="brain.Event:2").SerializeToString())
        for record in records:
            origin = record.origin
            prefix = "gradcam/recording" if origin.stage == "fit" else f"gradcam/{origin.stage}/recording"
            prefix += f"_{origin.callback}" if origin.callback > 1 else ""
            summary = summary_of(tags.tag(prefix, record.KIND, origin.step), record)
            frames.write(Event(wall_time=origin.wall_time, step=origin.step, summary=summary).SerializeToString())
    return path
