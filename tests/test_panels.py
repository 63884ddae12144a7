"""From results to panels: what stands where, in which words, in which colours."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from conftest import make_run
from models import CLASSES, Faulty, Spots, detached
from torch import Tensor

from gradcam_callback import Cause, GradCAMCallback, TensorProbes
from gradcam_callback.engine.targets import Scores
from gradcam_callback.probes.probe_set import ProbeSet
from gradcam_callback.reporting import panels
from gradcam_callback.reporting.panel import Panel
from gradcam_callback.reporting.panels import PanelRenderer, PanelStyle, class_name
from gradcam_callback.reporting.rendering import composition
from gradcam_callback.reporting.rendering.colormap import colormap_table
from gradcam_callback.reporting.rendering.tiles import displayable, tile_size
from gradcam_callback.results import CAMResult, GradientState, LayerHealth

OK, NONE, ZERO, NON_FINITE = GradientState.OK, GradientState.NONE, GradientState.ZERO, GradientState.NON_FINITE
STYLE = PanelStyle("turbo", 0.5, shared_scale=False, class_names=CLASSES, mean=None, std=None)
LAYER = "layer"
HATCHES = [(205, 210, 216), (230, 233, 237)]


def probe_set(count: int = 2, labels: bool = True) -> ProbeSet:
    images = torch.stack([Spots()[index][0] for index in range(count)])
    known = torch.arange(count) % 3 if labels else None
    names = tuple(f"#{index}" for index in range(count))
    return ProbeSet(images, known, names, tuple(range(count)), CLASSES, None, None, "f")


def verdict(*states: GradientState, cause: Cause | None = None, empty: tuple[int, ...] = ()) -> LayerHealth:
    flags = tuple(index in empty for index in range(len(states)))
    return LayerHealth(torch.ones(len(states)), states, flags, cause)


def cam_result(
    health: LayerHealth, maps: Tensor | None = None, targets: tuple[int, ...] = (), **more: Any
) -> CAMResult:
    """Probe `i` is predicted to be of class 0 with 0.7; class 1 has 0.2, class 2 has 0.1."""
    count = len(health.state)
    if maps is None:
        maps = torch.rand(count, 4, 4, generator=torch.Generator().manual_seed(0))
        maps[[state is not OK for state in health.state]] = math.nan
    probabilities = torch.tensor([[0.7, 0.2, 0.1]]).repeat(count, 1)
    zeros = torch.zeros(count, dtype=torch.long)
    chosen = torch.tensor(targets) if targets else zeros
    basic = CAMResult({LAYER: maps}, chosen, zeros.float(), zeros, probabilities, {LAYER: health}, (16, 16))
    return replace(basic, **more)


def pages_of(
    results: list[CAMResult], titles: list[str], probes: ProbeSet | None = None, style: PanelStyle = STYLE
) -> dict[str, list[Panel]]:
    renderer = PanelRenderer(probe_set(len(results[0].targets)) if probes is None else probes, style)
    return renderer.panels(renderer.render(on_device(results)), results, titles, "gradcam")


def on_device(results: list[CAMResult]) -> Any:
    """What the renderer needs of results before they are judged."""
    return [
        SimpleNamespace(
            cams=result.cams,
            scores=scores_of(result),
            extents={layer: result.extents.get(layer) for layer in result.cams},
        )
        for result in results
    ]


def scores_of(result: CAMResult) -> Scores:
    parts = (result.scores, result.targets, result.predictions, result.probabilities)
    return Scores(*parts, cast(Any, result.task), regions=result.regions, boxes=result.boxes)


def panel_of(*args: Any, **options: Any) -> Panel:
    [panel] = pages_of(*args, **options)[LAYER]
    return panel


# Words


def test_the_layer_stands_on_a_line_of_its_own() -> None:
    """The first line is large and bold; method, epoch and step belong in the small one beneath."""
    assert (
        panel_of([cam_result(verdict(OK, OK))], ["predicted"]).title
        == f"{LAYER}\ngradcam · 4 x 4 cells · a softmax of 3 logits"
    )


def test_input_captions_name_probe_label_and_prediction() -> None:
    panel = panel_of([cam_result(verdict(OK, OK))], ["predicted"])

    assert panel.captions == ("#0\nlabel: ant\npredicted: ant 0.70", "#1\nlabel: bee\npredicted: ant 0.70")
    assert panel.correct == (True, False)


@pytest.mark.parametrize(
    ("task", "outputs", "own", "told"),
    [
        ("classification", 3, False, "a softmax of 3 logits"),
        ("classification", 2, False, "probabilities of 2 classes"),
        ("classification", 3, True, "the model's own probabilities"),
        ("multilabel", 3, False, "a sigmoid of 3 labels"),
        ("regression", 3, False, "4 x 4 cells"),
        ("value", 1, False, "4 x 4 cells"),
    ],
)
def test_the_heading_tells_what_the_probabilities_are(
    monkeypatch: pytest.MonkeyPatch, task: str, outputs: int, own: bool, told: str
) -> None:
    original = scores_of
    monkeypatch.setitem(globals(), "scores_of", lambda r: replace(original(r), own=torch.tensor([own, own])))
    result = cam_result(verdict(OK, OK), task=task, probabilities=torch.full((2, outputs), 0.5))
    assert panel_of([result], ["predicted"]).title.endswith(f" · {told}")


def test_without_labels_nothing_is_right_or_wrong() -> None:
    panel = panel_of([cam_result(verdict(OK, OK))], ["predicted"], probe_set(labels=False))

    assert panel.captions[0] == "#0\npredicted: ant 0.70"
    assert panel.correct == (None, None)


def labelled(values: Any) -> ProbeSet:
    return replace(probe_set(labels=False), values=torch.tensor(values))


def test_several_labels_are_named_and_the_prediction_is_right_if_it_is_one_of_them() -> None:
    probes = labelled([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    panel = panel_of([cam_result(verdict(OK, OK), task="multilabel")], ["predicted"], probes)

    assert [caption.split("\n")[1:] for caption in panel.captions] == [
        ["labels: ant, cat", "predicted: ant 0.70"],
        ["labels: none", "predicted: ant 0.70"],
    ]
    assert panel.correct == (True, False)


def test_a_regression_shows_values() -> None:
    value = replace(cam_result(verdict(OK, OK), task="regression"), probabilities=torch.tensor([[-1.5], [20.25]]))
    panel = panel_of([value], ["predicted"], labelled([0.5, 19.0]))

    assert [caption.split("\n")[1:] for caption in panel.captions] == [
        ["label: 0.5", "predicted: -1.5"],
        ["label: 19", "predicted: 20.25"],
    ]
    assert panel.columns[0].captions == ("-1.5", "20.25")
    assert panel.correct == (None, None)


def test_a_regression_of_several_values_says_which() -> None:
    panel = panel_of(
        [cam_result(verdict(OK, OK), task="regression", targets=(1, 2))], ["predicted"], labelled([[1.0, 2, 3]] * 2)
    )
    assert panel.columns[0].captions == ("bee: 0.2", "cat: 0.1")
    assert panel.captions[0] == "#0\nlabel: 1, 2, 3\npredicted: ant: 0.7"


def test_labels_of_another_task_are_not_shown() -> None:
    panel = panel_of([cam_result(verdict(OK, OK))], ["predicted"], labelled([[1.0, 2.5], [0.0, 1.0]]))
    assert panel.captions[0] == "#0\npredicted: ant 0.70"


def test_a_column_names_its_class_and_that_ones_probability() -> None:
    panel = panel_of([cam_result(verdict(OK, OK)), cam_result(verdict(OK, OK), targets=(1, 2))], ["predicted", "label"])

    assert [column.title for column in panel.columns] == ["predicted", "label"]
    assert panel.columns[0].captions == ("ant 0.70", "ant 0.70")
    assert panel.columns[1].captions == ("bee 0.20", "cat 0.10")


def test_an_empty_map_is_said_and_is_no_null() -> None:
    maps = torch.zeros(2, 4, 4)
    panel = panel_of([cam_result(verdict(OK, OK, empty=(1,)), maps)], ["predicted"])

    assert "empty" not in panel.columns[0].captions[0]
    assert "every channel speaks against it" in panel.columns[0].captions[1]
    assert panel.columns[0].verdicts == (None, None)


@pytest.mark.parametrize(
    ("state", "cause", "text"),
    [
        (NONE, None, "no gradient"),
        (ZERO, None, "zero gradient"),
        (NON_FINITE, None, "gradient not finite"),
        (NONE, Cause.LAYER_NOT_CALLED, "no gradient\nlayer_not_called"),
        (NONE, Cause.UNSUPPORTED_OUTPUT, "no gradient\nunsupported_output"),
    ],
)
def test_a_null_says_what_it_is_in_place_of_a_map(state: GradientState, cause: Cause | None, text: str) -> None:
    panel = panel_of([cam_result(verdict(OK, state, cause=cause))], ["predicted"])

    assert panel.columns[0].verdicts == (None, text)


def test_a_bridged_map_is_drawn_and_said() -> None:
    health = replace(verdict(OK, NONE, cause=Cause.DETACHED), bridged=(False, True))
    column = panel_of([cam_result(health, torch.rand(2, 4, 4))], ["predicted"]).columns[0]

    assert column.verdicts == (None, None)
    assert column.captions == ("ant 0.70", "ant 0.70\nbridged: detached")


def test_a_score_that_is_not_a_number_is_no_prediction() -> None:
    """Of NaN logits argmax says class 0; that is nothing that the model predicted."""
    result = cam_result(verdict(OK, NON_FINITE))
    result.probabilities[1] = math.nan
    panel = panel_of([result], ["predicted"])

    assert "ant" not in panel.captions[1].split("\n")[-1]
    assert "nan" not in panel.columns[0].captions[1]


def test_class_names() -> None:
    assert class_name(1, CLASSES) == "bee"
    assert class_name(3, CLASSES) == "3"
    assert class_name(1, None) == "1"
    assert class_name(-1, CLASSES) == "-1"


def test_without_class_names_the_index_is_shown() -> None:
    panel = panel_of([cam_result(verdict(OK, OK))], ["predicted"], style=replace(STYLE, class_names=None))

    assert panel.captions[1] == "#1\nlabel: 1\npredicted: 0 0.70"


# Pictures


def test_the_tiles_are_the_enlarged_images() -> None:
    probes = probe_set()
    panel = panel_of([cam_result(verdict(OK, OK))], ["predicted"], probes)

    th, tw = tile_size(16, 16)
    assert panel.inputs.shape == (2, th, tw, 3)
    assert panel.inputs.dtype == torch.uint8
    shown = displayable(probes.images)  # a pixel becomes a square
    expected = shown.repeat_interleave(th // 16, 2).repeat_interleave(tw // 16, 3)
    assert (panel.inputs.permute(0, 3, 1, 2) - (expected * 255)).abs().max() <= 0.5


def test_normalisation_is_undone() -> None:
    probes = probe_set()
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    plain = panel_of([cam_result(verdict(OK, OK))], ["predicted"], replace(probes, images=probes.images.clamp(0, 1)))
    scaled = (probes.images.clamp(0, 1) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    style = replace(STYLE, mean=mean, std=std)
    undone = panel_of([cam_result(verdict(OK, OK))], ["predicted"], replace(probes, images=scaled), style)

    assert (plain.inputs.int() - undone.inputs.int()).abs().max() <= 1


def test_an_overlay_at_full_opacity_is_the_coloured_map() -> None:
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0] = 1.0
    maps[1] = 5.0
    panel = panel_of([cam_result(verdict(OK, OK), maps)], ["predicted"], style=replace(STYLE, opacity=1.0))

    table = colormap_table("turbo")
    first, second = panel.columns[0].overlays
    assert (first[0, 0] == table[255]).all()
    assert (first[-1, -1] == table[0]).all()
    assert (second == table[255]).all()
    assert panel.columns[0].peaks.tolist() == [1.0, 5.0]


def test_one_scale_for_all_keeps_the_order_of_the_maps() -> None:
    maps = torch.stack([torch.full((4, 4), 1.0), torch.full((4, 4), 4.0)])
    style = replace(STYLE, opacity=1.0, shared_scale=True)
    panel = panel_of([cam_result(verdict(OK, OK), maps)], ["predicted"], style=style)

    table = colormap_table("turbo")
    first, second = panel.columns[0].overlays
    assert (first == table[round(255 / 4)]).all()
    assert (second == table[255]).all()
    assert panel.shared_scale


def test_a_null_does_not_touch_the_scale_of_the_others() -> None:
    style = replace(STYLE, shared_scale=True)
    panel = panel_of([cam_result(verdict(OK, NONE))], ["predicted"], style=style)

    assert panel.columns[0].peaks.isfinite().tolist() == [True, False]


def test_each_map_stands_in_its_own_layer_and_column() -> None:
    """Two layers of different sizes, two targets: four maps, each hot in another corner."""

    def hot(size: tuple[int, int], corner: tuple[int, int], peak: float) -> Tensor:
        maps = torch.zeros(2, *size)
        maps[:, corner[0], corner[1]] = peak
        return maps

    health = {"a": verdict(OK, OK), "b": verdict(OK, NONE)}
    first = replace(
        cam_result(verdict(OK, OK)), cams={"a": hot((4, 4), (0, 0), 1), "b": hot((9, 7), (0, -1), 2)}, health=health
    )
    second = replace(first, cams={"a": hot((4, 4), (-1, 0), 3), "b": hot((9, 7), (-1, -1), 4)})
    pages = pages_of([first, second], ["predicted", "ant"], style=replace(STYLE, opacity=1.0))
    panels = {layer: panel for layer, [panel] in pages.items()}

    assert list(panels) == ["a", "b"]
    assert panels["a"].inputs.equal(panels["b"].inputs)
    hottest = colormap_table("turbo")[255]
    for layer, column, corner in (("a", 0, (0, 0)), ("b", 0, (0, -1)), ("a", 1, (-1, 0)), ("b", 1, (-1, -1))):
        assert (panels[layer].columns[column].overlays[0][corner] == hottest).all(), (layer, column)
    peaks = [column.peaks[0].item() for layer in "ab" for column in panels[layer].columns]
    assert peaks == [1, 3, 2, 4]
    assert panels["a"].columns[0].verdicts == (None, None)
    assert panels["b"].columns[0].verdicts == (None, "no gradient")


def test_a_panel_can_be_composed() -> None:
    panel = panel_of([cam_result(verdict(OK, NONE))], ["predicted"])

    pixels = composition.compose(panel)
    assert pixels.ndim == 3
    assert any((pixels == colour).all(-1).sum() > 1000 for colour in HATCHES)


# In the event file


def hatched(pixels: Any) -> int:
    return sum(int((pixels == colour).all(-1).sum()) for colour in HATCHES)


def test_null_tiles_are_hatched_in_the_event_file(tmp_path: Path) -> None:
    def area(folder: str, *args: Any) -> int:
        callback = GradCAMCallback(target_layers="model.stage", probes=4, bridge=False)
        look = make_run(tmp_path / folder, callback, *args, max_epochs=1).fit()
        return hatched(look.events.pixels("gradcam/model.stage"))

    assert area("healthy") == 0
    one, every = area("one", Faulty([[1]])), area("every", detached())
    assert one > 10_000
    assert every == pytest.approx(4 * one, rel=0.1)


def test_panels_of_one_run_have_one_size(tmp_path: Path) -> None:
    """TensorBoard's slider jumps otherwise: a null here and there must not move the rest."""
    callback = GradCAMCallback(target_layers="model.stage", probes=4)
    events = make_run(tmp_path, callback, Faulty([[], [0], [0, 1, 2, 3]])).fit().events

    assert len({events.pixels("gradcam/model.stage", position).shape for position in range(3)}) == 1


def test_file_names_reach_the_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Panel] = []
    compose = composition.compose
    monkeypatch.setattr(composition, "compose", lambda panel: (drawn.append(panel), compose(panel))[1])
    images = torch.stack([Spots()[index][0] for index in range(2)])
    probes = TensorProbes(images, names=["IMG_1.jpg", "IMG_2.jpg"])
    make_run(tmp_path, GradCAMCallback(target_layers="model.stage", probes=probes), max_epochs=1).fit()

    assert [caption.split("\n")[0] for caption in drawn[0].captions] == ["IMG_1.jpg", "IMG_2.jpg"]
    assert drawn[0].title.startswith("model.stage")
    for word in ("gradcam", "epoch 0", "step 3"):
        assert word in drawn[0].title


# Pages


@pytest.mark.parametrize("shared", [False, True])
def test_many_probes_are_drawn_in_pages_of_one_scale(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    monkeypatch.setattr(panels, "PAGE_PROBES", 2)
    count = 5
    maps = torch.ones(count, 4, 4) * torch.arange(1.0, count + 1)[:, None, None]
    results, probes = [cam_result(verdict(*[OK] * count), maps)], probe_set(count)
    style = replace(STYLE, shared_scale=shared)
    pages = pages_of(results, ["predicted"], probes, style)[LAYER]
    monkeypatch.setattr(panels, "PAGE_PROBES", count)
    whole = panel_of(results, ["predicted"], probes, style)

    assert [len(page.inputs) for page in pages] == [2, 2, 1]
    assert torch.cat([page.inputs for page in pages]).equal(whole.inputs)
    assert torch.cat([page.columns[0].overlays for page in pages]).equal(whole.columns[0].overlays)
    assert torch.cat([page.columns[0].peaks for page in pages]).equal(whole.columns[0].peaks)
    for name in ("captions", "correct"):
        assert sum((getattr(page, name) for page in pages), ()) == getattr(whole, name)
    assert sum((page.columns[0].captions for page in pages), ()) == whole.columns[0].captions
    assert [page.title.split(" · ")[-1] for page in pages] == [
        f"probes {n} of 5" for n in ("1 to 2", "3 to 4", "5 to 5")
    ]


def test_no_more_pages_than_can_be_looked_at_and_the_last_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "PAGE_PROBES", 1)
    count = panels.MOST_PAGES + 1
    pages = pages_of([cam_result(verdict(*[OK] * count))], ["predicted"], probe_set(count))[LAYER]

    assert len(pages) == panels.MOST_PAGES
    assert [("not drawn" in page.title) for page in pages] == [False, False, False, True]
    composition.compose(pages[-1])


# Channels


def test_images_of_other_channels_say_which_are_shown() -> None:
    probes = replace(probe_set(), images=torch.rand(2, 6, 16, 16))
    panel = panel_of([cam_result(verdict(OK, OK))], ["predicted"], probes)
    chosen = panel_of([cam_result(verdict(OK, OK))], ["predicted"], probes, replace(STYLE, channels=[3, 4, 5]))

    assert (panel.input_title, chosen.input_title) == ("input\nchannels 0, 1, 2 of 6", "input\nchannels 3, 4, 5 of 6")
    second = panel_of([cam_result(verdict(OK, OK))], ["predicted"], replace(probes, images=probes.images[:, 3:]))
    assert chosen.inputs.equal(second.inputs)
    assert second.input_title == "input"


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ValueError, match="mean has 2 numbers"):
        PanelRenderer(probe_set(), replace(STYLE, mean=[0.5, 0.5])).render(on_device([cam_result(verdict(OK, OK))]))


def test_drawing_never_waits_for_the_device() -> None:
    """Meta tensors hold no values, so that any step which reads one on the host fails on them."""
    result = cam_result(verdict(OK, OK))
    tensors = {name: getattr(result, name).to("meta") for name in ("targets", "scores", "predictions", "probabilities")}
    result = replace(result, **tensors, cams={LAYER: result.cams[LAYER].to("meta")}, health={})
    drawn = PanelRenderer(probe_set(), replace(STYLE, shared_scale=True)).render(on_device([result, result]))
    assert [tuple(tensor.shape) for tensor in drawn] == [(3, 2, 176, 176, 3), (2, 2), (2, 2), (2, 2, 5)]
    assert all(tensor.is_meta for tensor in drawn)


def test_the_panel_says_which_call_of_how_many() -> None:
    def called(name: str, calls: int, call: int) -> str:
        health = {name: replace(verdict(OK, OK), calls=calls, call=call)}
        result = cam_result(verdict(OK, OK))
        [panel] = pages_of([replace(result, cams={name: result.cams[LAYER]}, health=health)], ["predicted"])[name]
        return panel.title.splitlines()[0]

    assert called("head", 3, 2) == "head#2 of calls #0 to #2"
    assert called("head#-2", 3, 1) == "head#1 of calls #0 to #2"
    assert called("stem", 1, 0) == "stem"
    assert called("stem#0", 1, 0) == "stem#0"
