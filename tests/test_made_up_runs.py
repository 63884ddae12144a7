"""The runs that tests of the viewer make up are such as the callback writes."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from recordings import MadeUpRun

from gradcam_callback import GradCAMCallback
from gradcam_callback.probes.probe_set import make_probe_set
from gradcam_callback.recording.event_files import find_event_files, read_records
from gradcam_callback.recording.records import LayerMaps, Look, Origin, from_bytes
from gradcam_callback.reporting.panel import PanelStyle
from gradcam_callback.reporting.probe_pictures import encode_probes

MakeRun = Callable[..., Run]


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
