"""Where there is no gradient another method draws, if that was asked for; the alert proposes it, captions say it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Run, make_run
from models import Classifier, Network, ZeroHead
from torch import Tensor

from gradcam_callback import GradCAMCallback, compute_cam
from gradcam_callback.reporting.panel import Panel

Train = Callable[[Classifier, GradCAMCallback], Run]
LAYER = "model.stage"


def argmax_after(maps: Tensor) -> Tensor:
    """An operation that no gradient passes, and that cannot be bridged."""
    return (maps > 0).float()


@pytest.fixture
def trained(tmp_path: Path) -> Train:
    """Trains for an epoch."""
    count = itertools.count()
    return lambda module, callback: make_run(tmp_path / str(next(count)), callback, module, max_epochs=1).fit()


def broken() -> Classifier:
    return Classifier(Network(argmax_after))


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """All panels that are composed."""
    from gradcam_callback.reporting.rendering import composition

    kept: list[Panel] = []
    compose = composition.encode

    def keep(panel: Panel) -> composition.EncodedImage:
        kept.append(panel)
        return compose(panel)

    monkeypatch.setattr(composition, "encode", keep)
    return kept


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "eigencam"])
@pytest.mark.parametrize("model", [broken, ZeroHead], ids=["None", "zero"])
def test_another_method_draws_what_has_no_gradient(
    trained: Train, panels: list[Panel], method: str, model: Callable[[], Classifier]
) -> None:
    run = trained(model(), GradCAMCallback([LAYER], probes=4, method_on_null=method))
    result = run.callback.last_result
    assert result is not None
    verdict = result.health[LAYER]
    assert len(verdict.null_probes) == 4
    assert (verdict.substitute, verdict.substituted) == (method, (True,) * 4)
    assert run.callback.probes is not None
    expected = compute_cam(run.module, run.callback.probes.images, LAYER, method=method).cams[LAYER]
    torch.testing.assert_close(result.cams[LAYER], expected)
    [column] = panels[-1].columns
    assert all(f"{method}, no gradient: " in caption for caption in column.captions)
    assert set(column.verdicts) == {None}
    [alert] = run.callback.alerts
    assert (alert.status.value, alert.finding.alternative) == ("raised", "")


def test_a_healthy_model_keeps_its_method(trained: Train) -> None:
    run = trained(Classifier(), GradCAMCallback([LAYER], probes=4, method_on_null="scorecam"))
    assert run.callback.last_result is not None
    assert run.callback.last_result.health[LAYER].substituted == ()


def test_a_map_across_the_cut_comes_first(trained: Train) -> None:
    model = Classifier(Network(torch.Tensor.detach))
    for bridge, expected in ((True, ((True,) * 4, ())), (False, ((), (True,) * 4))):
        callback = GradCAMCallback([LAYER], probes=4, method_on_null="eigencam", bridge=bridge)
        run = trained(model, callback)
        assert run.callback.last_result is not None
        verdict = run.callback.last_result.health[LAYER]
        assert (verdict.bridged, verdict.substituted) == expected


def test_the_alert_proposes_a_method_without_a_gradient(trained: Train) -> None:
    run = trained(broken(), GradCAMCallback([LAYER], probes=4))
    [alert] = run.callback.alerts
    assert "`method_on_null: scorecam`" in alert.finding.alternative
    assert alert.finding.alternative in str(alert)
    assert alert.finding.alternative in alert.as_markdown()


def test_what_another_method_cannot_do_becomes_an_alert(trained: Train) -> None:
    class Fails:
        needs_gradient = False

        def map(self, activation: Tensor, gradient: None) -> Tensor:
            raise ZeroDivisionError("by design")

    callback = GradCAMCallback([LAYER], probes=4, method_on_null=Fails())  # type: ignore[arg-type]
    run = trained(broken(), callback)
    found = {str(alert.cause and alert.cause.value): alert.message for alert in run.callback.alerts}
    assert list(found) == ["callback_failed", "non_differentiable"]
    assert "ZeroDivisionError: by design" in found["callback_failed"]


def test_a_method_that_needs_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'gradcam' needs one\. Possible: 'eigencam', 'scorecam', 'ablationcam'"):
        GradCAMCallback(method_on_null="gradcam")
