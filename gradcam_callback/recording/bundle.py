"""Recordings as the viewer takes them: one bundle of bytes a run.

A bundle is `GCV1`, the length of the JSON in four bytes, the JSON, and blocks of arrays and pictures; all numbers are
little endian, and every array begins at a multiple of eight bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradcam_callback.recording.assembly import name_of, told_apart
from gradcam_callback.recording.payload import Array
from gradcam_callback.recording.recording import Recording
from gradcam_callback.recording.records import ProbePictures
from gradcam_callback.viewer.report import Run, build_report

MAGIC = b"GCV1"
_ALIGNMENT = 8


class _Blocks:
    """Bytes one behind the other, and where each begins."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self._pictures: dict[bytes, int] = {}

    def add(self, content: bytes) -> int:
        padded = content + bytes(-len(content) % _ALIGNMENT)
        self.parts.append(padded)
        self.size += len(padded)
        return self.size - len(padded)

    def add_picture(self, content: bytes) -> int:
        """The same picture is there once: several stages show the same probes."""
        if content not in self._pictures:
            self._pictures[content] = self.add(content)
        return self._pictures[content]


def bundle(recording: Recording) -> bytes:
    """A run with all its recordings as the viewer takes it."""
    blocks = _Blocks()
    recordings = [recording, *recording.others.values()]
    index = {
        "version": 1,
        "run": recording.name,
        "notes": list(dict.fromkeys(note for one in recordings for note in one.notes)),
        "series": [_series(one, blocks) for one in recordings],
    }
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    text += b" " * (-(len(MAGIC) + 4 + len(text)) % _ALIGNMENT)
    return b"".join([MAGIC, struct.pack("<I", len(text)), text, *blocks.parts])


def report_of(recordings: Sequence[Recording]) -> str:
    """One HTML file that shows these runs and needs nothing else."""
    names = told_apart(one.name for one in recordings)
    named = (replace(one, name=name) for one, name in zip(recordings, names, strict=True))
    return build_report([Run(one.name, bundle(one)) for one in named])


def _series(recording: Recording, blocks: _Blocks) -> dict[str, Any]:
    layers = [
        {"name": name, "shape": recording.levels[name].shape[3:], "layout": recording.layouts[name]}
        for name in recording.layers
    ]
    arrays = {name: _array(array, blocks) for name, array in _arrays(recording).items()}
    return {
        "name": name_of(recording),
        "stage": recording.stage,
        "callback": recording.callback,
        "method": recording.method,
        "substitute": recording.substitute,
        "task": recording.task,
        "layers": layers,
        "targets": recording.targets,
        "classNames": recording.class_names,
        "epochs": recording.epochs.tolist(),
        "steps": recording.steps.tolist(),
        "wallTimes": recording.wall_times.tolist(),
        "probeSetOf": recording.probe_set_of.tolist(),
        "probeSets": [_probe_set(record, blocks) for record in recording.pictures],
        "alerts": [_alert(alert, len(recording)) for alert in recording.alerts],
        "arrays": arrays,
    }


def _arrays(recording: Recording) -> dict[str, Array]:
    arrays = {
        "classes": recording.classes,
        "scores": recording.scores,
        "targetProbabilities": recording.probabilities,
        "predictions": recording.predictions,
        "predictionProbabilities": recording.prediction_probabilities,
        "labelProbabilities": recording.label_probabilities,
    }
    if recording.boxes is not None:
        arrays["boxes"] = recording.boxes
    for number, layer in enumerate(recording.layers):
        arrays |= {
            f"levels/{number}": recording.levels[layer],
            f"peaks/{number}": recording.peaks[layer],
            f"states/{number}": recording.state_codes[layer],
            f"flags/{number}": recording.flags[layer],
            f"norms/{number}": recording.gradient_norms[layer],
        }
        if layer in recording.extents:
            arrays[f"extents/{number}"] = recording.extents[layer]
    return arrays


def _array(array: Array, blocks: _Blocks) -> dict[str, Any]:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.name, "shape": array.shape, "offset": blocks.add(little.tobytes())}


def _probe_set(record: ProbePictures, blocks: _Blocks) -> dict[str, Any]:
    images = [
        {
            "type": image.media_type,
            "width": image.width,
            "height": image.height,
            "slices": image.slices,
            "offset": blocks.add_picture(image.content),
            "length": len(image.content),
        }
        for image in record.images
    ]
    told = {"fingerprint": record.fingerprint, "names": record.names, "labels": record.labels}
    return {**told, "labelTexts": record.label_texts, "images": images}


def _alert(alert: Mapping[str, Any], looks: int) -> dict[str, Any]:
    """An alert's record in the viewer's words."""
    told = {name: alert.get(name) for name in ("status", "subject", "layer", "cause", "epoch", "step")}
    texts = {name: str(alert.get(name, "")) for name in ("message", "remedy", "url")}
    return {
        **told,
        **texts,
        "wallTime": alert.get("wall_time"),
        "look": alert["look"] if alert["look"] < looks else None,
        "probes": alert.get("probes", []),
        "concernsAll": bool(alert.get("concerns_all", False)),
        "targets": alert.get("targets", []),
        "location": alert.get("location"),
    }
