"""Records: to bytes and back, within their size, and refused with a reason where they are damaged."""

from __future__ import annotations

import io
import json
import random
import statistics
import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from recordings import MadeUpRun, alert

from gradcam_callback import GradCAMCallback
from gradcam_callback.probes.probe_set import make_probe_set
from gradcam_callback.recording.assembly import assemble
from gradcam_callback.recording.event_files import find_event_files, read_records
from gradcam_callback.recording.payload import MAGIC, VERSION, UnreadableError, pack, unpack
from gradcam_callback.recording.reading import read_run
from gradcam_callback.recording.records import AlertRecords, LayerMaps, Look, Origin, from_bytes, to_bytes
from gradcam_callback.reporting.looks import quantise
from gradcam_callback.reporting.panel import PanelStyle
from gradcam_callback.reporting.probe_pictures import encode_probes

MakeRun = Callable[..., Run]
RUN = MadeUpRun(alerts={2: [alert("raised", 2)]}, nulls={2: [1]})


def assert_same(one: Any, other: Any) -> None:
    """Field by field, to the last bit."""
    assert type(one) is type(other)
    for item in fields(one):
        first, second = getattr(one, item.name), getattr(other, item.name)
        if isinstance(first, np.ndarray):
            assert first.dtype == second.dtype
            np.testing.assert_array_equal(first, second)
        elif item.name == "layers":
            for pair in zip(first, second, strict=True):
                assert_same(*pair)
        elif item.name == "images":
            assert [vars(image) for image in first] == [vars(image) for image in second]
        else:
            assert first == second, item.name


@pytest.mark.parametrize("number", range(RUN.looks + 1))
def test_records_come_back_as_they_were(number: int) -> None:
    record = list(RUN.records())[number]
    assert_same(record, from_bytes(to_bytes(record)))


@pytest.mark.parametrize("space", [(9,), (5, 4), (3, 5, 4)], ids=["signals", "images", "volumes"])
def test_maps_of_any_space_with_extents_and_boxes(space: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    look = RUN.look(0)
    maps = replace(
        look.layers[0],
        levels=rng.integers(0, 256, (2, 6, *space)).astype(np.uint8),
        extents=rng.random((6, 4), dtype=np.float32),
    )
    look = replace(look, layers=(maps,), boxes=rng.random((2, 6, 4), dtype=np.float32))
    assert_same(look, from_bytes(to_bytes(look)))
    [recording] = assemble("run", [look])
    assert recording.maps["net.stage"].shape == (1, 2, 6, *space)
    assert recording.boxes is not None
    np.testing.assert_array_equal(recording.extents["net.stage"][0], maps.extents)  # type: ignore[arg-type]


def test_alerts_alone() -> None:
    record = AlertRecords(RUN.origin(3, 2), (alert("raised", 2), alert("cleared", 3)))
    assert_same(record, from_bytes(to_bytes(record)))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_map_is_kept_to_one_part_in_255_of_its_peak(scale: float) -> None:
    maps = torch.rand(8, 7, 7) * scale
    maps[1], maps[2] = torch.nan, 0.0
    levels, peaks = quantise(maps)
    back = levels / 255 * peaks[:, None, None]
    error = (back - maps).abs().flatten(1).amax(dim=1) / maps.flatten(1).amax(dim=1)
    assert error[[0, 3, 4, 5, 6, 7]].max() <= 0.5 / 255 + 1e-5
    assert peaks[1].isnan()
    assert not back[2].any()


def test_one_infinite_value_is_no_map() -> None:
    maps = torch.ones(2, 3, 3)
    maps[0, 1, 1] = torch.inf
    levels, peaks = quantise(maps)
    assert peaks.isnan().tolist() == [True, False]
    assert (levels[1] == 255).all()


def test_a_look_at_16_probes_takes_less_than_4_kilobytes(run: MakeRun) -> None:
    callback = GradCAMCallback("model.stage", probes=16, target=["predicted", "label"])
    fit = run(callback, max_epochs=12).fit(val=24)
    [[file]] = find_event_files(str(fit.folder)).values()
    stored = list(read_records(str(fit.folder), file))
    looks = [record for record in stored if isinstance(from_bytes(record.payload), Look)]
    assert len(looks) == 12
    maps = from_bytes(looks[0].payload).layers[0].levels  # type: ignore[union-attr]
    assert maps[0, 0].size >= 49
    assert statistics.median(len(look.payload) for look in looks) <= 4000 - 200  # its tag and its time come on top


@pytest.mark.parametrize(("depth", "side", "slices", "shown"), [(80, 300, 64, 256), (3, 40, 3, 40)])
def test_the_slices_of_a_volume_stand_under_one_another(depth: int, side: int, slices: int, shown: int) -> None:
    volume = torch.linspace(0, 1, depth).view(1, 1, depth, 1, 1).expand(1, 1, depth, side, side)
    probes = make_probe_set(None, volume.contiguous(), None, ["a"])
    style = PanelStyle("turbo", 0.5, False, None, None, None)
    [image] = encode_probes(probes, style, [""], 3, Origin.unknown()).images
    pixels = np.asarray(Image.open(io.BytesIO(image.content)).convert("L"))
    assert (image.slices, image.width, image.height) == (slices, side, side)
    assert pixels.shape == (slices * shown, shown)
    taken = ((torch.arange(slices) + 0.5) * depth / slices).long()  # evenly from the depth
    middles = pixels[shown // 2 :: shown, shown // 2]
    assert np.abs(middles - (255 * taken / (depth - 1)).numpy()).max() < 4


# Damage


def spoilt(change: Callable[[dict[str, Any]], Any], record: Any = None) -> bytes:
    """A payload with another header."""
    header, arrays = unpack(to_bytes(RUN.look(2) if record is None else record))
    change(header)
    return pack(header, arrays)


def raw(text: str) -> bytes:
    body = len(text.encode()).to_bytes(4, "little") + text.encode()
    return MAGIC + bytes([VERSION]) + zlib.compress(body)


WHOLE = to_bytes(RUN.look(2))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "no record"),
        (b"nope" + WHOLE, "no record"),
        (MAGIC + bytes([VERSION + 1]) + WHOLE[4:], "of schema 2, and this version reads 1: update it"),
        (WHOLE[:-9], "cut short"),
        (MAGIC + bytes([VERSION]) + b"\x00" * 50, "damaged"),
        (MAGIC + bytes([VERSION]) + zlib.compress(bytes(1 << 29)), "larger than any record"),
        (raw("[" * 100_000), "header is damaged"),
        (raw('{"kind": "look"}'), "header is damaged"),
        (raw('{"kind": "look", "arrays": [["x", "uint8", [-1]]]}'), "has the shape"),
        (raw('{"kind": "look", "arrays": [["x", "float64", [1000000000000000000000]]]}'), "cut short"),
        (raw('{"kind": "look", "arrays": [["x", "object", [1]]]}'), "header is damaged"),
        (raw('{"kind": "look", "x": 1e999, "arrays": []}'), "the number 1e999"),
        (raw('{"kind": "look", "x": NaN, "arrays": []}'), "the number NaN"),
        (spoilt(lambda header: header.update(kind="film")), "an unknown kind, 'film'"),
        (spoilt(lambda header: header.update(targets=["one"])), "do not agree"),
        (spoilt(lambda header: header.update(alerts=[3])), "an alert in it is no record"),
        (spoilt(lambda header: header["origin"].update(step=1 << 60)), "its number, epoch and step"),
        (spoilt(lambda header: header["origin"].update(epoch="x")), "something is missing"),
        (spoilt(lambda header: header.pop("method")), "something is missing"),
    ],
)
def test_what_cannot_be_read_says_why(payload: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        from_bytes(payload)


def test_no_damage_is_another_error() -> None:
    """Thousands of payloads with some bytes changed, before and after the compression."""
    random_bytes = random.Random(0)
    body = bytearray(zlib.decompress(WHOLE[4:]))
    read = 0
    for _ in range(3000):
        changed = bytearray(body)
        for _ in range(random_bytes.randint(1, 6)):
            changed[random_bytes.randrange(min(len(changed), 900))] = random_bytes.randrange(256)
        try:
            record = from_bytes(MAGIC + bytes([VERSION]) + zlib.compress(bytes(changed), 0))
            assemble("run", [record])
            read += 1
        except UnreadableError:
            continue
    assert 0 < read < 3000  # a changed letter in a name is no damage


def test_a_record_that_is_there_twice_is_taken_once() -> None:
    records = list(RUN.records())
    [recording] = assemble("run", [*records, *records])
    assert len(recording) == RUN.looks


def test_targets_of_one_name_are_told_apart() -> None:
    look = replace(RUN.look(0), targets=("cat", "cat"))
    [recording] = assemble("run", [look])
    assert recording.targets == ("cat", "cat (2)")
    np.testing.assert_array_equal(recording.levels["net.stage"][0], look.layers[0].levels)


def test_a_layer_that_would_fill_the_memory_is_left_out() -> None:
    """One look of very many probes, and one of very large maps: together more than either holds."""
    many = MadeUpRun(looks=1, probes=20_000, cells=(1, 1), targets=("predicted",)).look(0)
    large = replace(
        MadeUpRun(looks=1, probes=1, cells=(600, 600), targets=("predicted",)).look(0), origin=RUN.origin(5, 5)
    )
    [recording] = assemble("run", [many, large])
    assert recording.layers == ()
    assert "would take 14 GB and were left out" in " ".join(recording.notes)


def test_alerts_are_quoted_with_their_code(run: MakeRun, tmp_path: Any) -> None:
    from models import detached

    fit = run(GradCAMCallback("model.stage", probes=4), detached(), max_epochs=1).fit()
    [told] = read_run(fit.folder).alerts
    assert (told["status"], told["cause"], told["layer"]) == ("raised", "detached", "model.stage")
    assert told["look"] == 0
    numbers = [number for number, _ in told["location"]["around"]]
    assert numbers == list(range(told["location"]["line"] - 2, told["location"]["line"] + 3))
    assert told["location"]["code"] in told["location"]["around"][2][1]
    assert told["url"].endswith("#detached")
    written = {key: value for key, value in told.items() if key not in ("url", "wall_time", "look")}
    written["location"] = {key: value for key, value in told["location"].items() if key != "around"}
    assert [written] == json.loads(json.dumps(fit.alerts_file))


def test_made_up_records_are_what_the_callback_writes(run: MakeRun) -> None:
    """Or the tests of the viewer would prove nothing."""
    fit = run(GradCAMCallback("model.stage", probes=4, target=["predicted", "label"]), max_epochs=1).fit()
    [[file]] = find_event_files(str(fit.folder)).values()
    real = {type(record): record for record in map(from_bytes, (one.payload for one in read_records(file, file)))}
    for made_up in MadeUpRun(looks=1).records():
        own = real[type(made_up)]
        for item in fields(made_up):
            assert type(getattr(own, item.name)) is type(getattr(made_up, item.name)), item.name
            if isinstance(getattr(own, item.name), np.ndarray):
                assert getattr(own, item.name).dtype == getattr(made_up, item.name).dtype
    for item in fields(LayerMaps):
        assert type(getattr(real[Look].layers[0], item.name)) is type(getattr(MadeUpRun().look(0).layers[0], item.name))
    assert isinstance(real[Look].origin, Origin)
