"""The option `panels`: which looks the Images tab gets. The recording has all of them in any case."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from conftest import Run
from lightning.pytorch import Callback, LightningModule, Trainer
from models import STEPS, Classifier, Faulty, Spots, detached
from torch.utils.data import DataLoader

from gradcam_callback import GradCAMCallback, GradientNullError, read_run
from gradcam_callback.cli import main
from gradcam_callback.reporting.panels import PanelRenderer
from gradcam_callback.trainer_context import TrainerContext

MakeRun = Callable[..., Run]

LAYER = "model.stage"
PANEL = f"gradcam/{LAYER}"


def cb(panels: Any, **options: Any) -> GradCAMCallback:
    return GradCAMCallback(options.pop("target_layers", LAYER), 4, panels=panels, **options)


def epochs(steps: list[int]) -> list[int]:
    """The epochs at whose ends these steps are, from 0."""
    assert all(step % STEPS == 0 for step in steps)
    return [step // STEPS - 1 for step in steps]


def shown(fit: Run, tag: str = PANEL) -> list[int]:
    """The epochs whose panels the Images tab has; each look is in the recording."""
    recorded = epochs(read_run(fit.folder).steps.tolist())
    assert recorded == list(range(fit.trainer.max_epochs or 0))
    return sorted(epochs(fit.events.steps(tag)))  # two files of one second are read in the order of their names


class Still(Classifier):
    """Learns nothing, so that no prediction changes."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_train_epoch_start(self) -> None:
        self.eval()  # nor do the statistics of the batch norm


class Swayed(Still):
    """Predicts class 0 everywhere until an epoch, and class 1 from then on."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bias = torch.tensor([0.0, 100.0, 0.0] if self.current_epoch >= self.epoch else [100.0, 0.0, 0.0])
        return super().forward(images) + bias


def test_every_look_has_a_panel_by_default(run: MakeRun) -> None:
    assert shown(run(GradCAMCallback(LAYER, 4)).fit()) == [0, 1, 2]
    assert GradCAMCallback().settings.panels == "every look"


def test_every_look(run: MakeRun) -> None:
    assert shown(run(cb("every look"), Still()).fit()) == [0, 1, 2]


def test_never(run: MakeRun) -> None:
    fit = run(cb("never")).fit()
    assert shown(fit) == []
    assert not fit.events.images
    assert fit.events.steps("gradcam/null_gradients") == [STEPS, 2 * STEPS, 3 * STEPS]


def test_with_never_only_the_dry_run_draws_to_find_out_whether_the_options_fit(
    run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    render = PanelRenderer.render
    monkeypatch.setattr(PanelRenderer, "render", lambda *args: drawn.append(1) or render(*args))
    assert shown(run(cb("never")).fit()) == []
    assert len(drawn) == 1


def test_where_nothing_changes_the_first_look_has_the_only_panel(run: MakeRun) -> None:
    assert shown(run(cb("when something changed"), Still(), max_epochs=4).fit()) == [0]


def test_a_prediction_that_changes_is_a_change(run: MakeRun) -> None:
    assert shown(run(cb("when something changed"), Swayed(2), max_epochs=5).fit()) == [0, 2]


class StillFaulty(Faulty):
    """Loses gradients by a plan, and learns nothing. The maps are lost behind the score, so predictions stay."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_train_epoch_start(self) -> None:
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + torch.tensor([100.0, 0.0, 0.0])


def test_a_gradient_that_is_lost_or_comes_back_is_a_change(run: MakeRun) -> None:
    plan = [[], [], [1], [1], [2], [], []]
    fit = run(cb("when something changed"), StillFaulty(plan), max_epochs=7).fit()
    assert shown(fit) == [0, 2, 4, 5]
    assert [(status, epoch) for status, _, _, epoch in fit.alerts] == [("raised", 2), ("changed", 4), ("cleared", 5)]


def test_an_alert_of_something_else_is_a_change(run: MakeRun) -> None:
    class Strange(Callback):
        """What a hook of ours would do that fails."""

        def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 2:
                session, moment = fit.callback._session_of(trainer), TrainerContext(trainer, pl_module)
                with session.reporter.guard(moment, "Something broke"):
                    raise RuntimeError("on purpose")

    fit = run(cb("when something changed"), Still(), max_epochs=5, callbacks=[Strange()])
    fit.fit()
    assert [(status, epoch) for status, _, _, epoch in fit.alerts] == [("raised", 2), ("cleared", 2)]
    assert shown(fit) == [0, 2]


def test_the_look_after_a_probe_pass_that_failed_has_a_panel(run: MakeRun) -> None:
    class Shy(Still):
        """Does not run on the probes in epoch 1."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.current_epoch == 1 and len(images) == 4:
                raise RuntimeError("no probes in here")
            return super().forward(images)

    fit = run(cb("when something changed"), Shy(), max_epochs=4).fit(val=16)
    assert [(status, epoch) for status, _, _, epoch in fit.alerts] == [("raised", 1), ("cleared", 2)]
    assert epochs(fit.events.steps(PANEL)) == [0, 2]
    assert read_run(fit.folder).epochs.tolist() == [0, 2, 3]


def test_panels_that_could_not_be_drawn_are_drawn_at_the_next_look(
    run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    panels, calls = PanelRenderer.panels, []

    def panels_but_once(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the first is the dry run
            raise RuntimeError("on purpose")
        return panels(*args)

    monkeypatch.setattr(PanelRenderer, "panels", panels_but_once)
    assert shown(run(cb("when something changed"), Still()).fit()) == [1]


def test_last_has_the_panel_of_the_last_look(run: MakeRun) -> None:
    fit = run(cb("last")).fit()
    assert shown(fit) == [2]
    always = run(cb("every look"), folder="always").fit()
    assert (fit.events.pixels(PANEL) == always.events.pixels(PANEL)).all()


def test_last_where_the_last_epochs_have_no_look(run: MakeRun) -> None:
    fit = run(cb("last", every_n_epochs=2), max_epochs=4).fit()
    assert fit.events.steps(PANEL) == [3 * STEPS]
    assert read_run(fit.folder).epochs.tolist() == [0, 2]


class Halt(Callback):
    """Ends the training in the middle of an epoch."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 2 * STEPS + 1:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("on purpose"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_last_has_a_panel_when_the_training_breaks_off(run: MakeRun, error: BaseException) -> None:
    fit = run(cb("last"), callbacks=[Halt(error)])
    with suppress(RuntimeError, KeyboardInterrupt, SystemExit):
        fit.fit()
    assert fit.events.steps(PANEL) == [2 * STEPS]
    assert read_run(fit.folder).steps.tolist() == [STEPS, 2 * STEPS]


def test_last_has_a_panel_when_a_null_ends_the_training(run: MakeRun) -> None:
    fit = run(cb("last", on_null="raise"), Faulty([[], [1], [1]]), num_sanity_val_steps=0)
    with pytest.raises(GradientNullError):
        fit.fit()
    assert fit.events.steps(PANEL) == [2 * STEPS]
    assert read_run(fit.folder).steps.tolist() == [STEPS, 2 * STEPS]


def test_last_is_written_once_a_stage(run: MakeRun) -> None:
    fit = run(cb("last"), max_epochs=2).fit().validate().test()
    for tag in (PANEL, f"gradcam/validate/{LAYER}", f"gradcam/test/{LAYER}"):
        assert fit.events.steps(tag) == [2 * STEPS], tag
    assert set(read_run(fit.folder).others) == {"validate", "test"}


def test_last_of_a_training_that_goes_on_is_written_at_each_end(run: MakeRun) -> None:
    fit = run(cb("last"), max_epochs=1).fit()
    fit.trainer.fit_loop.max_epochs = 3
    fit.fit()
    assert shown(fit) == [0, 2]


@pytest.mark.parametrize("option", ["every look", "when something changed", "last"])
def test_without_a_logger_the_files_are_those_of_the_option(run: MakeRun, option: str) -> None:
    fit = run(cb(option), Still(), logger=False).fit()
    files = sorted(path.name for path in fit.folder.rglob("step=*"))
    expected = {"every look": [3, 6, 9], "when something changed": [3], "last": [9]}
    assert [int(name[5:13]) for name in files] == expected[option]
    assert len(read_run(fit.folder)) == 3


def test_two_callbacks_have_options_of_their_own(run: MakeRun) -> None:
    other = cb("never", target_layers="model.stem")
    fit = run(cb("last"), callbacks=[other]).fit()
    assert set(fit.events.images) == {PANEL}
    assert shown(fit) == [2]
    assert len(read_run(fit.folder).others["fit, callback 2"]) == 3


def test_every_layer_and_every_page_is_drawn_or_none(run: MakeRun) -> None:
    fit = run(cb("when something changed", target_layers=["model.stem", LAYER], fuse=True), Swayed(1)).fit()
    for tag in (PANEL, "gradcam/model.stem", "gradcam/fused"):
        assert shown(fit, tag) == [0, 1], tag


def test_a_detached_network_changes_nothing_more_after_the_first_look(run: MakeRun) -> None:
    module = detached()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)  # type: ignore[method-assign]
    module.on_train_epoch_start = module.eval  # type: ignore[assignment, method-assign]
    assert shown(run(cb("when something changed"), module).fit()) == [0]


def test_other_probes_half_way_are_a_change(run: MakeRun) -> None:
    """A second run of the same callback begins anew."""
    callback = cb("when something changed")
    first = run(callback, Still(), max_epochs=2, folder="first").fit()
    second = run(callback, Still(), max_epochs=2, folder="second").fit(val=DataLoader(Spots(12, start=40), 8))
    assert [shown(first), shown(second)] == [[0], [0]]


@pytest.mark.parametrize("bad", ["sometimes", "", None, 3, "Last", True, ["last"]])
def test_another_value_is_refused_and_the_possible_ones_are_named(bad: Any) -> None:
    with pytest.raises(ValueError, match="`panels` is one of") as raised:
        cb(bad)
    for option in ("every look", "when something changed", "last", "never"):
        assert repr(option) in str(raised.value)
    assert repr(bad) in str(raised.value)


def test_the_option_can_be_given_in_a_configuration(run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--trainer.callbacks+=gradcam_callback.GradCAMCallback", "--trainer.callbacks.panels=often"])
    assert "when something changed" in capsys.readouterr().err
