"""Records to bytes and back: nothing is lost, little is taken, and whatever cannot be read is refused with a reason."""

from __future__ import annotations

import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from models import Classifier, Faulty, Spots
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from torch import nn

from gradcam_callback import GradCAMCallback, TensorProbes
from gradcam_callback.recording import payload
from gradcam_callback.recording.assembly import assemble, together
from gradcam_callback.recording.bundle import bundle, report_of
from gradcam_callback.recording.event_files import StoredRecord
from gradcam_callback.recording.payload import Room, UnreadableError
from gradcam_callback.recording.reading import decode, read_run
from gradcam_callback.recording.records import (
    BRIDGED,
    EMPTY,
    AlertRecords,
    LayerMaps,
    Look,
    Origin,
    ProbeImage,
    ProbePictures,
    Record,
    from_bytes,
    to_bytes,
)
from gradcam_callback.reporting.looks import quantise

MakeRun = Callable[..., Run]

LAYER = "model.stage"
ORIGIN = Origin("fit", 2, (1700000000.25, "a1b2c3d4"), 7, 3, 120, 1700000123.5)
ALERT = {
    "status": "raised",
    "step": 120,
    "epoch": 3,
    "subject": LAYER,
    "layer": LAYER,
    "cause": "detached",
    "probes": [0, 2],
    "concerns_all": False,
    "targets": ["predicted"],
    "message": "<b>Grüße</b> \u202e \ud800",  # markup, text from right to left, half of a pair
    "remedy": "Mend it.",
    "location": {"file": "a.py", "line": 3, "around": [[2, "x"], [3, "y"]]},
}


def layer(space: tuple[int, ...] = (7, 7), targets: int = 2, probes: int = 3, **more: Any) -> LayerMaps:
    """Maps of every kind: one that is there, one that is empty, one that is not there."""
    random_numbers = np.random.default_rng(0)
    shape = targets, probes
    levels = random_numbers.integers(0, 256, (*shape, *space)).astype(np.uint8)
    peaks = random_numbers.random(shape).astype(np.float32)
    levels[:, 1:], peaks[:, 1:2], peaks[:, 2:] = 0, 0, np.nan
    states = np.array([[0, 0, 1]] * targets, np.uint8)[:, :probes]
    flags = np.array([[0, EMPTY, BRIDGED]] * targets, np.uint8)[:, :probes]
    return LayerMaps(LAYER, "channels first", levels, peaks, states, flags, np.where(states, np.nan, peaks), **more)


def look(*layers: LayerMaps, targets: int = 2, probes: int = 3, **more: Any) -> Look:
    numbers = np.linspace(-1, 1, targets * probes, dtype=np.float32).reshape(targets, probes)
    made = {
        "origin": ORIGIN,
        "method": "gradcam",
        "task": "classification",
        "targets": tuple(f"target {number}" for number in range(targets)),
        "probe_set": "f" * 64,
        "layers": layers or (layer(targets=targets, probes=probes),),
        "classes": np.arange(targets * probes, dtype=np.int32).reshape(targets, probes) - 1,
        "scores": numbers,
        "target_probabilities": np.where(numbers < 0, np.nan, numbers),
        "predictions": np.arange(probes, dtype=np.int32) - 1,
        "prediction_probabilities": numbers[0],
        "label_probabilities": np.full(probes, np.nan, np.float32),
    }
    return Look(**(made | more))


def pictures(count: int = 3, **more: Any) -> ProbePictures:
    images = tuple(ProbeImage(b"\x89PNG" + bytes([number]) * number, 16, 8 + number, 1) for number in range(count))
    made = {
        "origin": ORIGIN,
        "fingerprint": "f" * 64,
        "names": tuple(f"probe {number}" for number in range(count)),
        "labels": tuple(None if number == 1 else number for number in range(count)),
        "label_texts": ("نملة", "", "bee")[:count],
        "images": images,
        "class_names": ("ant", "bee"),
    }
    return ProbePictures(**(made | more))


def boxes() -> np.ndarray:
    made = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    made[1] = np.nan
    return made


EXTENTS = np.array([[0, 0, 7, 7], [0.5, 1, 6.25, 7], [0, 0, 0, 0]], np.float32)
RECORDS: dict[str, Record] = {
    "a look": look(),
    "with alerts": look(alerts=(ALERT, {**ALERT, "location": None, "cause": None})),
    "with extents": look(layer(extents=EXTENTS)),
    "with boxes": look(boxes=boxes()),
    "of a signal": look(layer((9,))),
    "of a volume": look(layer((3, 5, 7))),
    "of two layers": look(layer(), replace(layer((14, 14)), name="model.stem#0/1")),
    "of twelve layers": look(*(replace(layer(), name=f"layer {number}") for number in range(12))),
    "of one probe": look(targets=1, probes=1),
    "pictures": pictures(),
    "pictures without names of classes": pictures(class_names=None),
    "alerts": AlertRecords(ORIGIN, (ALERT, ALERT)),
    "no alerts": AlertRecords(ORIGIN),
}
HOSTILE = "a look", "with alerts", "with extents", "with boxes", "pictures", "alerts"


def assert_equal(one: Any, other: Any) -> None:
    """Of everything in a record its type and value; NaN is equal to NaN."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, Record | LayerMaps | ProbeImage):
        for item in fields(one):
            assert_equal(getattr(one, item.name), getattr(other, item.name))
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_equal(first, second)
    else:
        assert one == other


# To bytes and back


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert_equal(from_bytes(to_bytes(record)), record)


def test_what_was_read_can_only_be_read() -> None:
    record = from_bytes(to_bytes(look()))
    assert isinstance(record, Look)
    with pytest.raises(ValueError, match="read-only"):
        record.scores[0] = 0


def test_the_bytes_are_those_that_the_document_lays_out() -> None:
    """Read by hand, as another program would."""
    content = to_bytes(look(layer((2, 5))))
    assert content[:4] == b"GCR\x01"
    body = zlib.decompress(content[4:])
    (length,) = struct.unpack("<I", body[:4])
    header = json.loads(body[4 : 4 + length])
    assert header["kind"] == "look"
    assert header["targets"] == ["target 0", "target 1"]
    assert header["layers"] == [[LAYER, "channels first"]]
    start, found = 4 + length, {}
    for name, dtype, shape in header["arrays"]:
        array = np.frombuffer(body, np.dtype(dtype).newbyteorder("<"), int(np.prod(shape)), start)
        found[name], start = array.reshape(shape), start + array.nbytes
    assert start == len(body)
    np.testing.assert_array_equal(found["0/levels"], layer((2, 5)).levels)
    np.testing.assert_array_equal(found["predictions"], [-1, 0, 1])


def test_the_document_lists_every_array_with_its_type_and_shape() -> None:
    text = (Path(__file__).parents[1] / "docs" / "recording.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \|", text, flags=re.MULTILINE)
    listed = {name: (dtype, shape) for name, dtype, shape in rows}
    record = look(layer(extents=EXTENTS), boxes=boxes())
    sizes = {2: "T", 3: "N"}
    found = {}
    for part in (record, record.layers[0]):
        arrays = {item.name: getattr(part, item.name) for item in fields(part)}
        for name, array in arrays.items():
            if isinstance(array, np.ndarray):
                shape = "T, N, space" if name == "levels" else ", ".join(sizes.get(n, str(n)) for n in array.shape)
                found[name] = (array.dtype.name, shape)
    assert listed == found


def test_the_document_lists_every_name_of_a_header() -> None:
    text = (Path(__file__).parents[1] / "docs" / "recording.md").read_text()
    for record in RECORDS.values():
        header, _ = opened(to_bytes(record))
        names = [*header, *(f"origin.{name}" for name in header["origin"])]
        names += [name for alert in header.get("alerts", []) for name in alert]
        assert [name for name in names if f"`{name}`" not in text] == []


def test_what_a_later_release_adds_is_left_alone() -> None:
    header, arrays = payload.unpack(to_bytes(RECORDS["with alerts"]))
    header |= {"mood": "good", "alerts": [{**ALERT, "mood": "bad"}]}
    record = from_bytes(payload.pack(header, {**arrays, "moods": np.zeros(3, np.float64), "0/moods": np.zeros(1)}))
    assert isinstance(record, Look)
    assert_equal(replace(record, alerts=()), look())
    assert record.alerts[0]["mood"] == "bad"


def test_levels_are_never_further_from_a_map_than_half_a_step() -> None:
    maps = torch.rand(50, 3, 4) * 10.0 ** torch.arange(-25, 25)[:, None, None]
    maps[3], maps[7] = torch.nan, 0
    maps[9, 1, 2] = torch.inf
    levels, peaks = quantise(maps)
    back = levels * (peaks / 255)[:, None, None]
    drawn = torch.tensor([row not in (3, 9) for row in range(50)])
    assert peaks.isnan().equal(~drawn)
    error = (back - maps)[drawn].abs().amax((1, 2))
    assert (error <= maps[drawn].amax((1, 2)) * (0.5 / 255 + 1e-6)).all()


def test_what_is_read_back_of_a_run_is_within_a_255th_of_each_maps_maximum(run: MakeRun) -> None:
    fit = run(GradCAMCallback([LAYER, "model.stem"], 8), Faulty([[], [], [1, 4]]), logger=False).fit(val=16)
    recording = read_run(fit.folder)
    result = fit.callback.last_result
    assert result is not None
    assert recording.maps.keys() == result.cams.keys()
    for name, cams in result.cams.items():
        maps = recording.maps[name][-1, 0]
        assert maps.dtype == np.float32
        missing = np.isnan(cams.numpy()).all((1, 2))
        assert np.isnan(maps).all((1, 2)).tolist() == missing.tolist()
        error = np.abs(maps - cams.numpy())[~missing].max((1, 2))
        assert (error <= cams.numpy()[~missing].max((1, 2)) / 255).all()
    assert np.isnan(recording.maps[LAYER][-1, 0, [1, 4]]).all()


class Large(nn.Module):
    """Maps of 7 x 7 of images of 56 x 56."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Conv2d(3, 16, 9, stride=8, padding=4)
        self.fc = nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.stage(images).relu().mean((2, 3)))
        return logits


def events_with_records(folder: Path) -> Iterator[tuple[int, Event]]:
    """The size in the file, and the event, of each event with a record of the callback."""
    [file] = folder.rglob("*tfevents*")
    for data in RawEventFileLoader(str(file)).Load():
        event = Event.FromString(data)
        if any(value.metadata.plugin_data.plugin_name == "gradcam" for value in event.summary.value):
            yield len(data) + 16, event  # with its length and its checksums


def test_a_look_at_16_probes_takes_less_than_4_kb(run: MakeRun) -> None:
    images = torch.rand(16, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    probes = TensorProbes(images, torch.arange(16) % 3)
    callback = GradCAMCallback(LAYER, probes, target=["predicted", "label"])
    fit = run(callback, Classifier(Large()), max_epochs=5).fit(
        train=torch.utils.data.DataLoader(Spots(24, size=56), 8), val=torch.utils.data.DataLoader(Spots(8, size=56), 8)
    )
    assert fit.callback.last_result is not None
    assert fit.callback.last_result.cams[LAYER].shape == (16, 7, 7)
    sizes = [
        size
        for size, event in events_with_records(fit.folder)
        if json.loads(event.summary.value[0].metadata.plugin_data.content)["kind"] == "look"
    ]
    assert len(sizes) == 5
    assert 16 * 2 * 49 / 8 < median(sizes) <= 4000


def test_equal_titles_of_targets_are_told_apart() -> None:
    titles = ("a", "a", "a (2)", "b", "a")
    made = replace(look(targets=5), targets=titles, classes=np.arange(15, dtype=np.int32).reshape(5, 3))
    [recording] = assemble("run", [made])
    assert len(set(recording.targets)) == 5
    assert recording.targets[:2] == ("a", "a (2)")
    np.testing.assert_array_equal(recording.classes[0], made.classes)


def test_runs_of_one_name_are_told_apart_in_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradcam_callback.recording.bundle.build_report", list)
    runs: Any = report_of([together(assemble(name, [look()])) for name in ("a", "b", "a")])
    assert [run.name for run in runs] == ["a", "b", "a (2)"]
    assert b'"run":"a (2)"' in runs[2].bundle


def mean_score(output: Any, batch: Any) -> torch.Tensor:
    return output.mean(1)


def test_two_scores_of_one_name_are_both_recorded(run: MakeRun) -> None:
    def first(output: Any, batch: Any) -> torch.Tensor:
        return output[:, 0]

    first.__name__ = "mean_score"
    fit = run(GradCAMCallback(LAYER, 4, target=[mean_score, first]), logger=False, max_epochs=1).fit()
    recording = read_run(fit.folder)
    assert len(recording.targets) == 2
    assert fit.callback.last_result is not None
    np.testing.assert_allclose(recording.scores[0, 0], fit.callback.last_result.scores, rtol=1e-6)
    assert not np.allclose(recording.scores[0, 0], recording.scores[0, 1])
    assert np.isfinite(recording.maps[LAYER]).all()


# What cannot be read


def packed(header: Any, block: bytes = b"") -> bytes:
    """Bytes in the right frame, whatever is in them."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return b"GCR\x01" + zlib.compress(struct.pack("<I", len(text)) + text + block)


def opened(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the block of arrays of a good record."""
    body = zlib.decompress(content[4:])
    end = 4 + struct.unpack("<I", body[:4])[0]
    return json.loads(body[4:end]), body[end:]


def with_header(record: Record = RECORDS["with alerts"], **changed: Any) -> bytes:
    header, block = opened(to_bytes(record))
    return packed({**header, **changed}, block)


def with_origin(**changed: Any) -> bytes:
    return with_header(origin={**vars(ORIGIN), **changed})


def with_alert(**changed: Any) -> bytes:
    return with_header(alerts=[{**ALERT, **changed}])


def with_text(old: str, new: str) -> bytes:
    """A record with other JSON than Python would write."""
    header, block = opened(to_bytes(RECORDS["with alerts"]))
    text = json.dumps(header)
    assert old in text
    return packed(text.replace(old, new, 1).encode(), block)


def with_array(name: str, array: np.ndarray, record: Record = RECORDS["with extents"]) -> bytes:
    header, arrays = payload.unpack(to_bytes(record))
    return payload.pack(header, {**arrays, name: array})


GOOD = to_bytes(RECORDS["with alerts"])
DEEP = '{"a":' * 20 + "1" + "}" * 20
BAD = {
    "nothing": b"",
    "its beginning alone": b"GCR\x01",
    "another magic": b"GCS" + GOOD[3:],
    "a newer schema": b"GCR\x02" + GOOD[4:],
    "cut short": GOOD[:-1],
    "cut in half": GOOD[: len(GOOD) // 2],
    "no compressed bytes": GOOD[:4] + b"plain",
    "an empty body": b"GCR\x01" + zlib.compress(b""),
    "a header longer than the body": b"GCR\x01" + zlib.compress(struct.pack("<I", 1 << 31) + b"{}"),
    "a bomb": b"GCR\x01" + zlib.compress(bytes(payload.LARGEST + 1)),
    "a large header": packed(b'{"kind":"alerts","arrays":[' + b"[]," * (6 << 20) + b"[]]}"),
    "a list": packed([]),
    "a text": packed("look"),
    "no UTF-8": packed(b"\xff\xfe"),
    "a dictionary of nothing": packed({}),
    "no arrays": packed({"kind": "alerts", "origin": vars(ORIGIN), "alerts": []}),
    "an unknown kind": with_header(kind="film"),
    "a kind that is a list": with_header(kind=["look"]),
    "no origin": with_header(origin=None),
    "a session that is a number": with_origin(session=5),
    "a negative step": with_origin(step=-1),
    "a step that JavaScript cannot count to": with_origin(step=1 << 53),
    "a time without an end": with_origin(wall_time="inf"),
    "a time that is no number": with_origin(wall_time="nan"),
    "a session that began at no number": with_origin(session=["nan", "x"]),
    "a time that is too large": with_origin(wall_time=10**400),
    "a number with too many digits": with_text('"step": 120', f'"step": {"9" * 5000}'),
    "NaN": with_text('"wall_time": 1700000123.5', '"wall_time": NaN'),
    "Infinity": with_text('"message": ', '"more": Infinity, "message": '),
    "minus Infinity": with_text('"message": ', '"more": -Infinity, "message": '),
    "1e999": with_text('"message": ', '"more": [1e999], "message": '),
    "deep JSON": with_text('"message": ', f'"more": {DEEP}, "message": '),
    "JSON deeper than Python goes": with_text('"message": ', f'"more": {"[" * 100000 + "]" * 100000}, "message": '),
    "an alert that is a text": with_header(alerts=["raised"]),
    "an alert that is a list": with_header(alerts=[[1]]),
    "alerts that are a dictionary": with_header(alerts={"a": 1}),
    "alerts that are no list": with_header(alerts=5),
    "an alert with a step in words": with_alert(step="120"),
    "an alert with a huge step": with_alert(step=10**30),
    "an alert with probes in words": with_alert(probes=["0"]),
    "an alert with a message that is a list": with_alert(message=["<script>"]),
    "an alert with a location that is a text": with_alert(location="a.py"),
    "targets that are missing": with_header(targets=["one"]),
    "no targets": with_header(targets=[]),
    "targets that are a number": with_header(targets=3),
    "layers that are missing": with_header(layers=[[LAYER, ""], ["another", ""]]),
    "layers without a name": with_header(layers=[[]]),
    "an array of no type": with_header(arrays=[["predictions", "object", [3]]]),
    "an array of a type that is a list": with_header(arrays=[["predictions", ["uint8"], [3]]]),
    "an array with a negative size": with_header(arrays=[["predictions", "int32", [-3]]]),
    "an array with half a size": with_header(arrays=[["predictions", "int32", [1.5]]]),
    "an array larger than memory": with_header(arrays=[["predictions", "int32", [1 << 62, 1 << 62]]]),
    "an empty array with a huge side": with_header(arrays=[["predictions", "int32", [0, 10**30]]]),
    "an array in too many dimensions": with_header(arrays=[["predictions", "int32", [1] * 70]]),
    "arrays that are a dictionary": with_header(arrays={"predictions": 3}),
    "predictions of too few probes": with_array("predictions", np.zeros(2, np.int32)),
    "predictions in a table": with_array("predictions", np.zeros((3, 1), np.int32)),
    "predictions that are broken": with_array("predictions", np.full(3, 1e300)),
    "maps without cells": with_array("0/levels", np.zeros((2, 3, 0, 7), np.uint8)),
    "maps without space": with_array("0/levels", np.zeros((2, 3), np.uint8)),
    "maps in too many dimensions": with_array("0/levels", np.zeros((2, 3, 1, 1, 1, 1), np.uint8)),
    "maps of other targets": with_array("0/levels", np.zeros((3, 2, 7, 7), np.uint8)),
    "maps in float": with_array("0/levels", np.zeros((2, 3, 7, 7), np.float32)),
    "peaks in double": with_array("0/peaks", np.zeros((2, 3))),
    "extents of other probes": with_array("0/extents", np.zeros((2, 4), np.float32)),
    "boxes of three numbers": with_array("boxes", np.zeros((2, 3, 3), np.float32)),
    "a name too few": with_header(RECORDS["pictures"], names=["one"]),
    "sizes that are no numbers": with_header(RECORDS["pictures"], sizes=[["w", 1, 1]] * 3),
    "sizes of zero": with_header(RECORDS["pictures"], sizes=[[0, 1, 1]] * 3),
    "sizes without an end": with_header(RECORDS["pictures"], sizes=[[10**40, 1, 1]] * 3),
    "a picture that is missing": with_header(RECORDS["pictures"], arrays=[]),
    "labels in words": with_header(RECORDS["pictures"], labels=["ant"] * 3),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_refused_in_a_sentence(content: bytes) -> None:
    with pytest.raises(UnreadableError) as raised:
        from_bytes(content)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_a_newer_schema_says_what_to_do() -> None:
    with pytest.raises(UnreadableError, match="schema 2, and this version reads 1: update"):
        from_bytes(BAD["a newer schema"])


def test_a_bomb_takes_no_more_memory_than_a_record_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "LARGEST", 1 << 20)
    with pytest.raises(UnreadableError, match="larger than any record may be"):
        from_bytes(b"GCR\x01" + zlib.compress(bytes(2 << 20)))


def test_many_records_that_are_small_bombs_take_no_more_than_a_run_may() -> None:
    content = to_bytes(look(layer((64, 64))))
    size = len(zlib.decompress(content[4:]))
    room = Room(2 * size)
    assert [isinstance(from_bytes(content, room), Look) for _ in range(2)] == [True, True]
    for _ in range(2):
        with pytest.raises(UnreadableError, match="all the memory that a run may take"):
            from_bytes(content, room)


# Thousands of records that somebody has tampered with. What can be read of them all is shown.

SPICE: list[Any] = [None, True, -1, 0, 3, 1 << 40, 10**30, 0.5, -1e300, "", "nan", "\ud800", [], [[]], {}, {"a": 1}]
SPICE += [[0, 1 << 62], [1] * 70, ["look"], {"step": 10**30}, "uint8", "float64", "fit"]


def tampered(content: bytes, chance: random.Random) -> bytes:
    """The same with one or a few changes: in its bytes, in the bytes before compression, or in its header."""
    if (kind := chance.randrange(4)) == 0:
        return bytes(_changed(bytearray(content), chance))
    if kind == 1:
        return content[:4] + zlib.compress(bytes(_changed(bytearray(zlib.decompress(content[4:])), chance)), 1)
    header, block = opened(content)
    for _ in range(chance.randint(1, 3)):
        _spice(header, chance)
    if kind == 3:
        block = bytes(_changed(bytearray(block), chance)) if block else block
    return packed(header, block)


def _changed(content: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        place = chance.randrange(max(1, min(len(content), chance.choice([16, 400, 1 << 30]))))
        if not (how := chance.randrange(4)):
            del content[place : place + chance.randint(1, 9)]
        elif how == 1:
            content[place:place] = chance.randbytes(chance.randint(1, 9))
        elif place < len(content):
            content[place] = chance.randrange(256)
    return content


def _spice(value: Any, chance: random.Random) -> None:
    """Change something somewhere in JSON."""
    while value:
        place = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        if isinstance(value[place], dict | list) and value[place] and chance.random() < 0.8:
            value = value[place]
            continue
        if chance.random() < 0.3:
            del value[place]
        else:
            value[place] = deepcopy(chance.choice(SPICE))
        return


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_changed_in_a_record_it_is_read_or_refused(name: str) -> None:
    chance = random.Random(name)
    content, survivors = to_bytes(RECORDS[name]), list[Record]()
    for _ in range(4000):
        try:
            survivors.append(from_bytes(tampered(content, chance)))
        except UnreadableError:
            continue
    assert 100 < len(survivors) < 3900  # or the changes are too harmless or too wild
    _show(survivors, name)


def _show(survivors: list[Record], name: str) -> None:
    """What could be read is shown, all of it together with records that are in order."""
    whole = [replace(one, origin=replace(ORIGIN, number=100 + n)) for n, one in enumerate((look(), pictures()))]
    for start in range(0, len(survivors), 100):
        part = [*survivors[start : start + 100], *whole]
        recordings = assemble(name, part)
        assert recordings
        recording = together(recordings)
        for one in (recording, *recording.others.values()):
            assert repr(one)
            for layer_name in one.layers:
                assert one.maps[layer_name].shape[:3] == (len(one), len(one.targets), one.predictions.shape[1])
            assert one.states.keys() == set(one.layers)
        content = bundle(recording)
        (length,) = struct.unpack("<I", content[4:8])
        json.loads(content[8 : 8 + length], parse_constant=pytest.fail)


def test_looks_that_have_nothing_in_common_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradcam_callback.recording.assembly.MOST_MAPS", 100)
    origins = [replace(ORIGIN, number=number, step=number) for number in range(20)]
    looks = [look(origin=origin, targets=2, probes=3) for origin in origins]
    odd = replace(look(origin=replace(ORIGIN, number=30, step=30)), targets=("other 1", "other 2"))
    [recording] = assemble("run", [odd, *looks, replace(looks[-1], origin=replace(ORIGIN, number=31, step=31))])
    assert recording.classes.size <= 100
    assert recording.steps[-1] == 31
    assert "too much memory" in " ".join(recording.notes)


def test_pictures_of_another_number_of_probes_are_not_taken_for_those_of_a_look() -> None:
    [recording] = assemble("run", [look(), pictures(count=2, origin=replace(ORIGIN, number=8))])
    assert recording.predictions.shape == (1, 3)
    assert recording.probe_set_of.tolist() == [-1]
    assert "images of some looks could not be read" in " ".join(recording.notes)


def test_the_readable_records_among_unreadable_ones_are_read() -> None:
    stored = [StoredRecord(name, content) for name, content in BAD.items()]
    stored[10:10] = [StoredRecord("good", to_bytes(look())), StoredRecord("pictures", to_bytes(pictures()))]
    records_read, problems = decode(stored)
    assert [record.KIND for record in records_read] == ["look", "probes"]
    assert len(problems) == len(BAD)
    for name, problem in zip(BAD, problems, strict=True):
        assert f"({name})" in problem
