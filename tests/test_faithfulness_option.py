"""The callback measures faithfulness where it is asked to: the engine's own figures, of the explained classes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_run
from models import Classifier, Network
from torch import Tensor

from gradcam_callback import GradCAMCallback, compute_cam, read_run
from gradcam_callback.engine.faithfulness import FaithfulnessOptions, measure
from gradcam_callback.execution.faithfulness_pass import MEASURES

LAYER = "model.stage"
FEW = {"steps": 4, "percentiles": [50]}


def test_the_figures_are_those_of_the_explained_classes(tmp_path: Path) -> None:
    callback = GradCAMCallback([LAYER, "model.norm"], probes=4, target=["predicted", 1], faithfulness=FEW)
    run = make_run(tmp_path, callback, max_epochs=1).fit()
    assert callback.alerts == []
    assert callback.probes is not None
    model, images = run.module.eval(), callback.probes.images
    measures, options = read_run(tmp_path).measures, FaithfulnessOptions(steps=4, percentiles=(50,))
    for number, classes in enumerate((model(images).argmax(1), torch.ones(4, dtype=torch.int64))):

        def score(changed: Tensor, rows: Tensor, classes: Tensor = classes) -> Tensor:
            return model(changed).softmax(1).gather(1, classes[rows, None])[:, 0]

        for layer in (LAYER, "model.norm"):
            heatmaps = compute_cam(model, images, layer, target=classes).heatmaps()[layer]
            expected = measure(score, images, heatmaps, options)
            for name in MEASURES:
                got = measures[name][layer][-1, number]
                np.testing.assert_allclose(got, getattr(expected, name), rtol=1e-4, atol=1e-5)
                if number == 0:
                    [mean] = run.events.values(f"gradcam/{name}/{layer}")
                    assert mean == pytest.approx(float(got.mean()), rel=1e-4)


def test_it_is_measured_every_so_many_epochs_and_says_its_price(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = GradCAMCallback([LAYER], probes=4, faithfulness={**FEW, "every_n_epochs": 2})
    with caplog.at_level(logging.INFO, "gradcam_callback"):
        make_run(tmp_path, callback, max_epochs=3).fit()
    values = read_run(tmp_path).measures["insertion"][LAYER][:, 0]
    assert np.isfinite(values).all(axis=1).tolist() == [True, False, True]
    assert "The measures of faithfulness cost 14 more forward passes for each of 4 probes." in caplog.text


def test_it_is_off_by_default(tmp_path: Path) -> None:
    make_run(tmp_path, GradCAMCallback([LAYER], probes=4), max_epochs=1).fit()
    assert not set(MEASURES) & set(read_run(tmp_path).measures)


def test_a_probe_without_a_map_has_no_figures(tmp_path: Path) -> None:
    module = Classifier(Network(lambda maps: (maps > 0).float()))
    make_run(tmp_path, GradCAMCallback([LAYER], probes=4, faithfulness=FEW), module, max_epochs=1).fit()
    assert np.isnan(read_run(tmp_path).measures["insertion"][LAYER]).all()


def test_training_is_not_touched(tmp_path: Path) -> None:
    weights = []
    for folder, given in (("plain", None), ("measured", FEW)):
        module = Classifier()
        make_run(tmp_path / folder, GradCAMCallback([LAYER], probes=4, faithfulness=given), module).fit()
        weights.append(module.state_dict())
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"depth": 3}, "takes `every_n_epochs`.* there is no 'depth'"),
        ({"every_n_epochs": 0}, "`every_n_epochs` is 0"),
        ({"steps": 0}, "at least one step"),
        ({"percentiles": [120]}, "above 0 and below 100"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GradCAMCallback(faithfulness=given)


def test_a_target_without_a_probability_is_refused_before_the_first_step(tmp_path: Path) -> None:
    def total(output: Tensor, batch: Any) -> Tensor:
        return output.sum(1)

    run = make_run(tmp_path, GradCAMCallback([LAYER], probes=4, target=total, faithfulness=True))
    with pytest.raises(ValueError, match=r"`faithfulness` asks how .* 'total' is none"):
        run.fit()
    assert run.trainer.global_step == 0
