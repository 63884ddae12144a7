"""The callback in a real Trainer: what is written and when, and what it takes and refuses."""

from __future__ import annotations

import copy
import errno
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Events, Run, make_run
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from models import (
    STEPS,
    UNPICKLE,
    Augmented,
    Bare,
    Classifier,
    Flat,
    Named,
    Network,
    Spots,
    SpotStream,
    ZeroHead,
    detached,
    loader,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradcam_callback import (
    GradCAMCallback,
    GradientNullError,
    GradientState,
    TensorProbes,
    ValidationProbes,
    compute_cam,
)
from gradcam_callback.engine import auto
from gradcam_callback.reporting.panels import PanelRenderer
from gradcam_callback.reporting.sinks.disk_space import NoSpaceError

MakeRun = Callable[..., Run]

LAYER = "model.stage"
PANEL = f"gradcam/{LAYER}"
SCALARS = {
    "gradcam/null_gradients",
    "gradcam/empty_maps",
    "gradcam/seconds",
    f"gradcam/gradient_norm/{LAYER}",
}
MEASURES = {f"gradcam/focus/{LAYER}", f"gradcam/border_energy/{LAYER}"}  # where a map is not zero
FROM_THE_SECOND_LOOK = {f"gradcam/drift/{LAYER}", f"gradcam/worst_drift/{LAYER}"}


def counts(look: Run) -> set[int]:
    """How often each of the scalars was written."""
    return {len(look.events.steps(tag)) for tag in SCALARS}


def staged(tag: str, stage: str) -> str:
    return tag.replace("gradcam/", f"gradcam/{stage}/")


def cb(probes: Any = 4, target_layers: Any = LAYER, **options: Any) -> GradCAMCallback:
    return GradCAMCallback(target_layers=target_layers, probes=probes, **options)


# What is written, and when


def test_every_tag_at_every_epoch_at_the_global_step(run: MakeRun) -> None:
    fit = run(cb()).fit()

    events = fit.events
    assert events.ours() == {PANEL, *SCALARS, *MEASURES, *FROM_THE_SECOND_LOOK}  # no alert, so no text
    steps = [STEPS, 2 * STEPS, 3 * STEPS]
    for tag in (PANEL, *SCALARS, *MEASURES):
        assert events.steps(tag) == steps, tag
    for tag in FROM_THE_SECOND_LOOK:
        assert events.steps(tag) == steps[1:], tag
    assert events.values("gradcam/null_gradients") == [0, 0, 0]
    assert all(0 < seconds < 10 for seconds in events.values("gradcam/seconds"))
    assert fit.alerts == []
    assert fit.alerts_file == []
    assert fit.our_warnings() == []


def test_gradient_norm_is_the_mean_l2_norm_of_an_independent_gradient(run: MakeRun) -> None:
    fit = run(cb()).fit()

    assert fit.callback.probes is not None
    assert fit.callback.probes.images.equal(torch.stack([Spots()[index][0] for index in range(4)]))
    model = fit.module.model.eval()
    maps = model.stage(F.relu(model.norm(model.stem(fit.callback.probes.images)))).detach().requires_grad_()
    logits = model.fc(F.relu(maps).mean((2, 3)))
    gradient = torch.autograd.grad(logits.amax(1).sum(), maps)[0]
    expected = gradient.flatten(1).norm(dim=1).mean().item()
    assert fit.events.values(f"gradcam/gradient_norm/{LAYER}")[-1] == pytest.approx(expected, rel=1e-5)


def test_last_result_is_that_of_the_last_validation(run: MakeRun) -> None:
    callback = cb()
    assert callback.last_result is None
    assert callback.probes is None
    fit = run(callback).fit()

    assert callback.probes is not None
    assert callback.last_result is not None
    expected = compute_cam(fit.module, callback.probes.images, LAYER)
    torch.testing.assert_close(callback.last_result.cams[LAYER], expected.cams[LAYER])


def test_the_panel_changes_while_the_model_learns_and_the_probes_do_not(run: MakeRun) -> None:
    fit = run(cb(ValidationProbes(n=4))).fit(val=loader(Augmented(12)))

    first, *_, last = (fit.events.pixels(PANEL, position) for position in range(3))
    assert first.shape == last.shape
    inputs = slice(24, 24 + 160)  # the left column holds the input images
    assert (first[100:220, inputs] == last[100:220, inputs]).all()
    assert (first != last).any()


def test_nothing_is_written_in_the_sanity_check(run: MakeRun) -> None:
    seen = []

    class AfterSanity(Callback):
        def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append((fit.callback.last_result, list(fit.callback.alerts), dict(trainer.callback_metrics)))

    fit = run(cb(), detached(), num_sanity_val_steps=2, max_epochs=1, callbacks=[AfterSanity()])
    fit.fit()

    [(result, alerts, metrics)] = seen
    assert result is None
    assert alerts == []
    assert not [name for name in metrics if name.startswith("gradcam")]
    assert fit.events.steps(PANEL) == [STEPS]


def test_nothing_happens_in_the_sanity_check_of_a_second_run(run: MakeRun) -> None:
    """Then the callback has probes already, those of the first run."""
    first = run(cb(), max_epochs=1, folder="first").fit()
    result, seen = first.callback.last_result, []

    class AfterSanity(Callback):
        def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append((first.callback.last_result is result, list(first.callback.alerts)))

    second = run(
        first.callback, ZeroHead(), max_epochs=1, folder="second", num_sanity_val_steps=2, callbacks=[AfterSanity()]
    ).fit()

    assert seen == [(True, [])]
    assert second.events.steps(PANEL) == [STEPS]
    assert counts(second) == {1}


def test_several_validations_an_epoch(run: MakeRun) -> None:
    fit = run(cb(), max_epochs=2, val_check_interval=1).fit()

    assert fit.events.steps(PANEL) == [1, 2, 3, 4, 5, 6]
    assert counts(fit) == {6}


def test_gradient_accumulation_counts_optimizer_steps(run: MakeRun) -> None:
    fit = run(cb(), max_epochs=2, accumulate_grad_batches=3).fit()

    assert fit.events.steps(PANEL) == [1, 2]
    assert counts(fit) == {2}


def test_panel_and_scalars_share_a_step_with_two_optimizers(run: MakeRun) -> None:
    class Manual(Classifier):
        """Two optimizer steps a batch, as in a GAN: `trainer.global_step` counts both."""

        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [super().configure_optimizers(), super().configure_optimizers()]

    events = run(cb(), Manual(), max_epochs=2).fit().events

    for tag in (PANEL, *SCALARS):
        assert events.steps(tag) == [2 * STEPS, 4 * STEPS], tag


@pytest.mark.parametrize("loaders", [list, lambda pair: dict(zip("ab", pair, strict=True))], ids=["list", "dict"])
def test_several_validation_loaders_give_the_probes_of_the_first(run: MakeRun, loaders: Callable[..., Any]) -> None:
    fit = run(cb(), max_epochs=1).fit(val=loaders([loader(Spots(12)), loader(Spots(12, start=100))]))

    assert fit.events.steps(PANEL) == [STEPS]
    assert fit.callback.probes is not None
    assert fit.callback.probes.images[0].equal(Spots()[0][0])


def test_another_validation_loader_can_be_chosen(run: MakeRun) -> None:
    probes = ValidationProbes(n=2, dataloader_idx=1)
    fit = run(cb(probes), max_epochs=1).fit(val=[loader(Spots(12)), loader(Spots(12, start=100))])

    assert fit.callback.probes is not None
    assert fit.callback.probes.images[0].equal(Spots(12, start=100)[0][0])


def test_every_n_epochs_begins_with_epoch_0(run: MakeRun) -> None:
    fit = run(cb(every_n_epochs=2), max_epochs=5).fit()

    assert fit.events.steps(PANEL) == [STEPS, 3 * STEPS, 5 * STEPS]
    assert counts(fit) == {3}


def test_every_n_epochs_beside_validations_that_are_as_rare(run: MakeRun) -> None:
    """Validation comes after epochs 1 and 3, so no epoch that is looked at is a multiple of two."""
    fit = run(cb(every_n_epochs=2), max_epochs=4, check_val_every_n_epoch=2).fit()

    assert len(fit.events.steps("val_loss")) == 2
    assert fit.events.steps(PANEL) == [2 * STEPS, 4 * STEPS]


def test_a_first_validation_that_comes_late(run: MakeRun) -> None:
    """Lightning has not made the validation loaders yet when training starts."""
    fit = run(cb(), max_epochs=4, check_val_every_n_epoch=2).fit()

    assert fit.our_warnings() == []
    assert fit.events.steps(PANEL) == [2 * STEPS, 4 * STEPS]


def test_two_layers_give_two_panels_in_one_run(run: MakeRun) -> None:
    fit = run(cb(target_layers=["model.stem", LAYER]), max_epochs=1).fit()

    assert {tag for tag in fit.events.images if tag.startswith("gradcam")} == {"gradcam/model.stem", PANEL}
    assert f"gradcam/gradient_norm/{LAYER}" in fit.events.scalars
    assert "gradcam/gradient_norm/model.stem" in fit.events.scalars


def test_auto_chooses_the_last_convolution(run: MakeRun) -> None:
    fit = run(GradCAMCallback(probes=2), max_epochs=1).fit()

    assert fit.events.steps(PANEL) == [STEPS]


def test_autos_choice_is_logged_once(
    run: MakeRun, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Listened to where it is said: older versions of Lightning pass nothing on to the root.
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    run(GradCAMCallback(probes=2), max_epochs=2).fit()

    said = [record for record in caplog.records if "auto" in record.message and LAYER in record.message]
    assert len(said) == 1


def test_auto_chooses_anew_for_another_model(run: MakeRun) -> None:
    class Longer(Network):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(6, 6, 1)
            self.on_map = lambda maps: self.last(maps)

    callback = GradCAMCallback(probes=2)
    run(callback, max_epochs=1, folder="a").fit()
    fit = run(callback, Classifier(Longer()), max_epochs=1, folder="b").fit()

    assert fit.events.steps("gradcam/model.last") == [STEPS]


# Other entry points


def test_validate_alone(run: MakeRun) -> None:
    events = run(cb()).validate().events

    tags = {staged(tag, "validate") for tag in (PANEL, *SCALARS, *MEASURES)}
    assert events.ours() == tags
    for tag in tags:
        assert events.steps(tag) == [0], tag


def test_test_alone(run: MakeRun) -> None:
    events = run(cb()).test().events

    assert events.ours() == {staged(tag, "test") for tag in (PANEL, *SCALARS, *MEASURES)}
    assert events.steps(staged(PANEL, "test")) == [0]


def test_predict_passes_it_by(run: MakeRun) -> None:
    look = run(cb())
    look.trainer.predict(look.module, loader(Bare(8)))

    assert look.events.ours() == set()


def test_validate_and_test_after_fit(run: MakeRun) -> None:
    look = run(cb(), max_epochs=1).fit().validate().test()

    events = look.events
    assert events.steps(PANEL) == [STEPS]
    assert counts(look) == {1}
    for stage in ("validate", "test"):  # at the same step, so under tags of their own
        assert {len(events.steps(staged(tag, stage))) for tag in (PANEL, *SCALARS, *MEASURES)} == {1}
    assert look.alerts == []


def test_the_test_data_are_no_changed_validation_data(run: MakeRun) -> None:
    """`test(ckpt_path="best")` is how most trainings end; its probes come from other images, which is no fault."""
    look = run(cb(), max_epochs=1, enable_checkpointing=True).fit()
    look.test(loader(Spots(12, start=500)), ckpt_path=str(next(look.folder.rglob("*.ckpt"))), **UNPICKLE)

    assert look.alerts == []
    assert look.events.steps(staged(PANEL, "test")) == [STEPS]


def test_a_smaller_test_set_is_no_fault(run: MakeRun) -> None:
    look = run(cb(8), max_epochs=1, enable_checkpointing=True).fit()
    look.test(4, ckpt_path=str(next(look.folder.rglob("*.ckpt"))), **UNPICKLE)

    assert look.alerts == []
    assert look.events.steps(staged(PANEL, "test")) == [STEPS]


def test_fit_twice_goes_on(run: MakeRun) -> None:
    look = run(cb(), max_epochs=1).fit()
    look.trainer.fit_loop.max_epochs = 3
    look.fit()

    assert look.events.steps(PANEL) == [STEPS, 2 * STEPS, 3 * STEPS]
    assert look.alerts == []


def test_one_callback_in_two_trainers(run: MakeRun) -> None:
    callback = cb()
    first = run(callback, max_epochs=1, folder="first").fit()
    second = run(callback, max_epochs=2, folder="second").fit()

    assert first.events.steps(PANEL) == [STEPS]
    assert second.events.steps(PANEL) == [STEPS, 2 * STEPS]


def test_two_callbacks_in_one_trainer(run: MakeRun) -> None:
    other = cb(target_layers="model.stem")
    fit = run(cb(), max_epochs=1, callbacks=[other]).fit()

    events = fit.events
    assert set(events.images) == {PANEL, "gradcam/model.stem"}
    assert {f"gradcam/gradient_norm/{LAYER}", "gradcam/gradient_norm/model.stem"} <= events.ours()
    for name in ("null_gradients", "empty_maps", "seconds"):
        assert events.steps(f"gradcam/{name}") == events.steps(f"gradcam/{name}_2") == [STEPS]
        assert f"gradcam/{name}_2" in fit.trainer.callback_metrics
    assert fit.callback.state_key != other.state_key


def test_two_callbacks_with_the_same_layer(run: MakeRun) -> None:
    other = cb(method="gradcam++", target_layers="auto")
    fit = run(cb(), detached(), max_epochs=1, callbacks=[other]).fit()

    events = fit.events
    assert set(events.images) == {PANEL, f"{PANEL}_2"}
    assert set(events.texts) == {"gradcam/alerts", "gradcam/alerts_2"}
    assert f"gradcam/gradient_norm/{LAYER}_2" in events.scalars
    for kind in (events.images, events.scalars, events.texts):
        assert all(len({step for step, _ in written}) == len(written) for written in kind.values())


def test_two_callbacks_keep_their_states_apart(run: MakeRun, tmp_path: Path) -> None:
    def three() -> list[GradCAMCallback]:
        return [cb([0, 1], output="logits"), cb([2, 3], output="logits"), cb([2, 3], output="other")]

    class TwoHeads(Classifier):
        def forward(self, images: Tensor) -> Any:
            logits = super().forward(images)
            return {"logits": logits, "other": -logits}

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0])["logits"], batch[1])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])

    first, *others = three()
    fit = run(first, TwoHeads(), max_epochs=1, callbacks=others, folder="first").fit()
    fit.trainer.save_checkpoint(tmp_path / "last.ckpt")
    first, *others = three()
    second = run(first, TwoHeads(), max_epochs=2, callbacks=others, folder="second")
    second.fit(ckpt_path=tmp_path / "last.ckpt", **UNPICKLE)

    assert [callback.probes.indices for callback in (first, *others) if callback.probes] == [(0, 1), (2, 3), (2, 3)]
    assert set(second.events.images) == {PANEL, f"{PANEL}_2", f"{PANEL}_3"}


# Loggers


def test_without_a_logger_the_panels_become_files_of_this_run_alone(
    run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gradcam_callback"):
        first = run(cb(), logger=False).fit().validate()
        run(cb(), logger=False, max_epochs=1).fit()

    folders = [first.folder / "gradcam_logs" / f"version_{number}" / "gradcam" for number in (0, 1)]
    assert sorted(file.name for file in (folders[0] / LAYER).glob("*.png")) == [
        f"step={step:08d}.png" for step in (STEPS, 2 * STEPS, 3 * STEPS)
    ]
    assert (folders[0] / "validate" / LAYER / f"step={3 * STEPS:08d}.png").exists()
    assert [file.name for file in folders[1].rglob("*.png")] == [f"step={STEPS:08d}.png"]
    assert first.our_warnings() == []
    said = [record.message for record in caplog.records if "TensorBoardLogger" in record.message]
    assert [str(folder.parent) in text for folder, text in zip(folders, said[::2], strict=False)] == [True, True]


def test_without_a_logger_the_alerts_are_a_file_too(run: MakeRun) -> None:
    fit = run(cb(), detached(), logger=False, max_epochs=1).fit()

    [file] = fit.folder.rglob("alerts.jsonl")
    assert [json.loads(line)["status"] for line in file.read_text().splitlines()] == ["raised"]


def test_tensorboard_as_the_second_logger(run: MakeRun, tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path, name="", version="")]
    fit = run(cb(), detached(), logger=loggers, max_epochs=2).fit()

    assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS]
    assert counts(fit) == {2}
    assert len(fit.alerts_file) == 1
    assert not list(tmp_path.rglob("*.png"))


def test_with_a_csv_logger_alone_panels_and_alerts_lie_in_its_folder(run: MakeRun, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "csv")
    fit = run(cb(), logger=logger, max_epochs=1).fit()

    assert (Path(logger.log_dir) / "gradcam" / LAYER / f"step={STEPS:08d}.png").exists()
    header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(header) >= SCALARS
    assert fit.our_warnings() == []


def test_a_pattern_makes_a_panel_of_each_layer(run: MakeRun) -> None:
    fit = run(cb(target_layers="model.st*"), max_epochs=1).fit()
    assert [tag for tag in fit.events.images if tag.startswith("gradcam/")] == [
        *("gradcam/model.stem", "gradcam/model.stage"),
    ]
    assert fit.alerts == []


class Labelled(Spots):
    """The images with labels of another kind."""

    def __init__(self, length: int, kind: str) -> None:
        super().__init__(length)
        self.kind = kind

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        flags = torch.zeros(3)
        flags[[int(label), (int(label) + 1) % 3]] = 1
        labels = {
            "flags": flags,
            "value": torch.tensor(float(label) + 0.5),
            "values": flags + 0.25,
            "boxes": torch.rand(7),
        }
        return image, labels[self.kind]


class Scoring(Classifier):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.model.fc = nn.Linear(self.model.fc.in_features, outputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("loss", self(batch[0]).square().mean())


@pytest.mark.parametrize(
    ("kind", "outputs", "task", "said"),
    [
        ("flags", 3, "multilabel", "outputs for scores of labels, each for itself; `task` says otherwise"),
        ("value", 1, "regression", "outputs for values of a regression; `task` says otherwise"),
        ("values", 3, "regression", "numbers that are no classes"),
        ("boxes", 3, "classification", "The labels are no class indices (of shape (7,) each)"),
    ],
)
def test_the_labels_tell_the_task_once(
    run: MakeRun, kind: str, outputs: int, task: str, said: str, caplog: Any
) -> None:
    module, data = Scoring(outputs), loader(Labelled(8, kind))
    with caplog.at_level(logging.INFO):
        fit = run(cb(), module, max_epochs=2).fit(data, data)
    result = fit.callback.last_result
    assert result is not None
    assert result.task == task
    assert fit.alerts == []
    assert caplog.text.count(said) == 1
    assert fit.callback.probes is not None
    with torch.no_grad():
        logits = module.eval()(fit.callback.probes.images)
    expected = {"multilabel": logits.sigmoid(), "regression": logits, "classification": logits.softmax(1)}[task]
    torch.testing.assert_close(result.probabilities, expected)


def test_a_task_that_is_given_needs_no_labels_and_is_not_commented(run: MakeRun, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        fit = run(cb(task="multilabel"), max_epochs=1).fit()
    assert fit.callback.last_result is not None
    assert fit.callback.last_result.task == "multilabel"
    assert "`task`" not in caplog.text
    with pytest.raises(ValueError, match=r"`task` is one of 'classification', 'multilabel', 'regression'; given: 'x'"):
        cb(task="x")


class Patches(nn.Module):
    """A transformer with a class token, whose blocks return tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3))
        self.fc = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        cells = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(cells), -1, -1), cells], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.fc(tokens[:, 0])


@pytest.mark.parametrize("layout", [None, "tokens", {"grid": [4, 4], "extras": 1}], ids=str)
@pytest.mark.parametrize("layer", ["auto", "model.blocks.1"])
def test_the_tokens_of_a_transformer_are_explained(run: MakeRun, layer: str, layout: Any, caplog: Any) -> None:
    if layer == "auto" and isinstance(layout, dict):
        with pytest.raises(ValueError, match="Name the layer in `target_layers`"):
            run(cb(target_layers=layer, layout=layout), Classifier(Patches()), max_epochs=1).fit()
        return
    with caplog.at_level(logging.INFO):
        fit = run(cb(target_layers=layer, layout=layout), Classifier(Patches()), max_epochs=1).fit()
    assert fit.alerts == []
    assert fit.events.steps("gradcam/model.blocks.1") == [STEPS]
    assert fit.callback.last_result is not None
    assert fit.callback.last_result.layouts == {"model.blocks.1": "tokens, 1 extra"}
    assert fit.callback.last_result.cams["model.blocks.1"].shape == (4, 4, 4)
    assert fit.callback.last_result.cams["model.blocks.1"].max() > 0


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionError("nobody there"), "callback_failed"),
        (NoSpaceError(errno.ENOSPC, "No space left on device"), "writing_failed"),
    ],
    ids=["no connection", "no space"],
)
def test_a_logger_that_fails_leaves_the_others_alone(run: MakeRun, tmp_path: Path, error: OSError, cause: str) -> None:
    class Failing(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if "gradcam/seconds" in metrics and step == 2 * STEPS:
                raise error
            super().log_metrics(metrics, step)

    board = TensorBoardLogger(tmp_path, name="", version="")
    fit = run(cb(), logger=[Failing(tmp_path / "csv"), board]).fit()

    assert fit.events.steps("gradcam/null_gradients") == [STEPS, 2 * STEPS, 3 * STEPS]
    assert fit.alerts == [("raised", "logging", cause, 1), ("cleared", "logging", cause, 2)]


@pytest.mark.parametrize("logger", [True, False], ids=["with a logger", "without"])
def test_fast_dev_run_writes_nothing(run: MakeRun, tmp_path: Path, logger: bool) -> None:
    fit = run(cb(), detached(), fast_dev_run=True, logger=logger).fit()

    assert list(tmp_path.rglob("*")) == []
    assert fit.callback.last_result is not None


def test_no_validation_batches(run: MakeRun) -> None:
    fit = run(cb(), limit_val_batches=0, max_epochs=2).fit()

    assert fit.trainer.global_step == 2 * STEPS
    assert fit.events.ours() == {"gradcam/alerts"}
    assert fit.alerts == [("raised", "run", "no_maps", 0)]
    assert len(fit.our_warnings()) == 1


def test_no_validation_loader(run: MakeRun) -> None:
    fit = run(cb(), max_epochs=1).fit(val=None)

    assert fit.trainer.global_step == STEPS
    assert len(fit.our_warnings()) <= 1


# Metrics


def test_scalars_are_callback_metrics(run: MakeRun) -> None:
    fit = run(cb()).fit()

    for name in SCALARS:
        assert fit.trainer.callback_metrics[name].item() == pytest.approx(fit.events.values(name)[-1]), name


def test_the_users_metrics_stay_as_they_are(run: MakeRun, tmp_path: Path) -> None:
    with_it = run(cb(), folder="with").fit()
    without = Trainer(**plain_settings(tmp_path / "without"))
    without.fit(Classifier(), loader(24), loader(12))

    metrics = {name: value for name, value in with_it.trainer.callback_metrics.items() if "gradcam" not in name}
    assert metrics.keys() == without.callback_metrics.keys() == {"val_loss", "val_accuracy"}
    assert metrics == without.callback_metrics


def plain_settings(folder: Path, **settings: Any) -> dict[str, Any]:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    basic = {"default_root_dir": folder, "logger": False, "max_epochs": 3, "accelerator": "cpu"}
    return basic | quiet | {"num_sanity_val_steps": 0} | settings


def test_early_stopping_and_checkpoints_can_watch_null_gradients(run: MakeRun, tmp_path: Path) -> None:
    stopping = EarlyStopping("gradcam/null_gradients", patience=2)
    checkpoint = ModelCheckpoint(tmp_path / "kept", monitor="gradcam/null_gradients", mode="min")
    fit = run(cb(), max_epochs=9, callbacks=[stopping, checkpoint], enable_checkpointing=True).fit()

    assert fit.trainer.current_epoch == 3
    assert checkpoint.best_model_score is not None
    assert checkpoint.best_model_score.item() == 0


def test_early_stopping_beside_every_n_epochs(run: MakeRun) -> None:
    """Between two looks the metric is that of the last one."""
    stopping = EarlyStopping("gradcam/null_gradients", patience=9)
    fit = run(cb(every_n_epochs=2), max_epochs=4, callbacks=[stopping]).fit()

    assert fit.trainer.current_epoch == 4


# Targets


def test_a_column_a_target(run: MakeRun) -> None:
    one = run(cb(1), max_epochs=1, folder="one").fit()
    three = run(cb(1, target=["predicted", "label", 2]), max_epochs=1, folder="three").fit()

    widths = [look.events.pixels(PANEL).shape[1] for look in (one, three)]
    columns = [(width - 2 * 24 + 14) / (176 + 14) for width in widths]  # tiles of 176, margins of 24, gaps of 14
    assert columns == [2, 4]
    assert three.callback.last_result is not None
    assert three.callback.last_result.targets.equal(three.callback.last_result.predictions)


def test_label_explains_the_label(run: MakeRun) -> None:
    fit = run(cb(target="label"), max_epochs=1).fit()

    assert fit.callback.last_result is not None
    assert fit.callback.last_result.targets.tolist() == [0, 1, 2, 0]


def test_a_class_index_explains_that_class(run: MakeRun) -> None:
    fit = run(cb(target=2), max_epochs=1).fit()

    assert fit.callback.last_result is not None
    assert fit.callback.last_result.targets.tolist() == [2, 2, 2, 2]


def test_null_gradients_count_probes_layers_and_targets(run: MakeRun) -> None:
    callback = cb(3, target_layers=["model.stem", LAYER], target=["predicted", 0])
    fit = run(callback, detached(), max_epochs=1).fit()

    assert fit.events.values("gradcam/null_gradients") == [3 * 2 * 2]


@pytest.mark.parametrize("given", [None, ("red", "green", "blue")], ids=["of the data set", "given"])
def test_class_names_reach_the_panel(run: MakeRun, monkeypatch: pytest.MonkeyPatch, given: Any) -> None:
    drawn = watch_panels(monkeypatch)
    run(cb(target=1, class_names=given), max_epochs=1).fit()

    [panel] = drawn
    name = given[1] if given else "bee"
    assert panel.columns[0].title == name
    assert panel.columns[0].captions[0].startswith(name)
    assert f"label: {(given or Spots.classes)[0]}" in panel.captions[0]


def watch_panels(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The panels that are composed from here on."""
    from gradcam_callback.reporting.rendering import composition

    drawn: list[Any] = []
    compose = composition.compose
    monkeypatch.setattr(composition, "compose", lambda panel: (drawn.append(panel), compose(panel))[1])
    return drawn


# Precision, data, models


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed", "64-true"])
def test_precision(run: MakeRun, precision: str) -> None:
    fit = run(cb(), precision=precision, max_epochs=2).fit()

    assert fit.alerts == []
    assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS]
    result = fit.callback.last_result
    assert result is not None
    assert result.cams[LAYER].dtype == torch.float32
    assert set(result.health[LAYER].state) == {GradientState.OK}


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_own_images_come_in_the_models_precision(run: MakeRun, precision: str) -> None:
    """Images that do not pass through a loader and its hooks are float32 all the same."""
    images = torch.stack([Spots()[index][0] for index in range(2)])
    fit = run(cb(TensorProbes(images)), precision=precision, max_epochs=1).fit()

    assert fit.alerts == []
    assert fit.events.steps(PANEL) == [STEPS]


def test_iterable_data_set_is_not_used_up(run: MakeRun) -> None:
    seen = []

    class Count(Classifier):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            seen.append(len(batch[0]))

    fit = run(cb(), Count(), max_epochs=2).fit(val=DataLoader(SpotStream(16), batch_size=8))

    assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS]
    assert seen == [8, 8, 8, 8]


@pytest.mark.parametrize(("keys", "source"), [(("image", "label"), 4), (("x", "y"), None)], ids=["usual", "own"])
def test_batches_that_are_dictionaries(run: MakeRun, keys: tuple[str, str], source: int | None) -> None:
    probes = source or ValidationProbes(n=4, image_key=keys[0], label_key=keys[1])
    fit = run(cb(probes, target="label"), max_epochs=1).fit(loader(Named(*keys)), loader(Named(*keys)))

    assert fit.events.steps(PANEL) == [STEPS]
    assert fit.callback.last_result is not None
    assert fit.callback.last_result.targets.tolist() == [0, 1, 2, 0]


def test_images_alone(run: MakeRun) -> None:
    fit = run(cb(), max_epochs=1).fit(loader(Bare()), loader(Bare(12)))

    assert fit.events.steps(PANEL) == [STEPS]
    assert fit.alerts == []


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_channels(run: MakeRun, channels: int) -> None:
    data = loader(Spots(channels=channels))
    fit = run(cb(), Classifier(Network(channels=channels)), max_epochs=1).fit(data, data)

    assert fit.events.steps(PANEL) == [STEPS]


def test_a_frozen_backbone_under_no_grad(run: MakeRun) -> None:
    class Transfer(Classifier):
        def __init__(self) -> None:
            super().__init__()
            for module in (self.model.stem, self.model.norm, self.model.stage):
                module.requires_grad_(False)

        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                maps = self.model.stage(F.relu(self.model.norm(self.model.stem(images))))
            return self.model.fc(F.relu(maps).mean((2, 3)))

    fit = run(cb(), Transfer(), max_epochs=1).fit()

    assert fit.events.values("gradcam/null_gradients") == [0]


def test_batch_hooks_see_a_validation(run: MakeRun) -> None:
    """Normalising and augmenting on the device is Lightning's own recipe: `if self.trainer.training: augment`."""

    class OnDevice(Classifier):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            images, labels = batch
            if self.trainer.training or self.training:
                images = images + torch.randn_like(images)
            return 2 * images, labels

    fit = run(cb(), OnDevice(), max_epochs=1).fit()

    assert fit.callback.probes is not None
    assert fit.callback.probes.images[0].equal(2 * Spots()[0][0])


def test_a_data_modules_batch_hooks_are_applied(run: MakeRun) -> None:
    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader(24)

        def val_dataloader(self) -> Any:
            return loader(12)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return 2 * batch[0], batch[1]

    fit = run(cb(), max_epochs=1).fit(Data(), None)

    assert fit.callback.probes is not None
    assert fit.callback.probes.images[0].equal(2 * Spots()[0][0])


# The probes across runs


class Shifted(Spots):
    """The same samples, and brighter."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image + 0.1, label


def checkpointed(run: MakeRun, callback: GradCAMCallback, **settings: Any) -> tuple[Run, str]:
    first = run(callback, max_epochs=1, folder="first", enable_checkpointing=True, **settings).fit(val=24)
    return first, str(next(first.folder.rglob("*.ckpt")))


def test_fingerprint_and_indices_are_in_the_checkpoint(run: MakeRun) -> None:
    first, path = checkpointed(run, cb([5, 1, 7]))

    states = torch.load(path, weights_only=True)["callbacks"]
    [state] = [state for key, state in states.items() if "GradCAM" in key]
    assert first.callback.probes is not None
    assert state["fingerprint"] == first.callback.probes.fingerprint
    assert tuple(state["indices"]) == (5, 1, 7)


def test_resume_takes_the_same_indices(run: MakeRun) -> None:
    """The data set has grown in front: the first samples of each class are others now, and the old ones stay."""

    class Labelled(Spots):
        def __init__(self, order: list[int]) -> None:
            super().__init__()
            self.targets = order

    first = run(cb(ValidationProbes(per_class=1)), max_epochs=1, folder="first", enable_checkpointing=True)
    first.fit(val=loader(Labelled([0, 1, 2] * 8)))
    path = str(next(first.folder.rglob("*.ckpt")))
    second = run(cb(ValidationProbes(per_class=1)), max_epochs=2, folder="second")
    second.fit(val=loader(Labelled([2, 2, 2] + [0, 1, 2] * 7)), ckpt_path=path, **UNPICKLE)

    assert first.callback.probes is not None
    assert second.callback.probes is not None
    assert second.callback.probes.indices == first.callback.probes.indices == (0, 1, 2)
    assert second.events.steps(PANEL) == [2 * STEPS]
    assert second.alerts == []


def test_resume_with_other_pixels_raises_an_alert(run: MakeRun) -> None:
    _, path = checkpointed(run, cb())
    second = run(cb(), max_epochs=2, folder="second").fit(val=loader(Shifted()), ckpt_path=path, **UNPICKLE)

    assert second.alerts == [("raised", "probes", "probes_changed", 1)]
    assert [line["cause"] for line in second.alerts_file] == ["probes_changed"]
    [(step, text)] = second.events.texts["gradcam/alerts"]
    assert step == 2 * STEPS
    assert "other pixels" in text
    assert second.events.steps(PANEL) == [2 * STEPS]


def test_resume_with_other_probes_configured_takes_these(run: MakeRun) -> None:
    _, path = checkpointed(run, cb(2))
    second = run(cb([7, 8]), max_epochs=2, folder="second").fit(ckpt_path=path, **UNPICKLE)

    assert second.callback.probes is not None
    assert second.callback.probes.indices == (7, 8)
    assert second.alerts == []


def test_a_notice_says_once_that_there_are_fewer_probes(run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gradcam_callback"):
        fit = run(cb(20), max_epochs=2).fit(val=12)

    assert fit.alerts == []
    assert fit.our_warnings() == []
    [text] = [record.message for record in caplog.records if "20 probes" in record.message]
    assert "12" in text
    assert fit.callback.probes is not None
    assert len(fit.callback.probes) == 12


def test_positions_that_never_pass_are_an_alert(run: MakeRun) -> None:
    fit = run(cb([1, 99, 3]), max_epochs=2).fit(val=12)

    assert fit.alerts == [("raised", "probes", "probes_missing", 0)]
    assert "99" in fit.callback.alerts[0].message
    assert fit.callback.probes is not None
    assert fit.callback.probes.indices == (1, 3)
    assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS]


def test_everything_said_at_one_step_is_in_one_text(run: MakeRun) -> None:
    """Of two records with one tag and one step, TensorBoard shows the last."""
    fit = run(cb([1, 99]), detached()).validate()

    assert len(fit.alerts) == 2
    [(_, text)] = fit.events.texts["gradcam/validate/alerts"]
    assert "probes_missing" in text
    assert LAYER in text


# Doubtful panels


def with_outputs(head: nn.Module) -> Classifier:
    network = Network()
    network.fc = head
    return Classifier(network)


def test_more_numbers_than_named_classes_are_an_alert_and_no_panel(run: MakeRun) -> None:
    """An embedding of 8 numbers, say, for data of three classes."""
    fit = run(cb(class_names=["ant", "bee", "cat"]), with_outputs(nn.Linear(6, 8)), max_epochs=1).fit()

    assert fit.alerts == [("raised", "classes", "classes_differ", 0)]
    assert "8 numbers" in fit.callback.alerts[0].message
    assert "3 classes" in fit.callback.alerts[0].message
    assert fit.events.steps(PANEL) == []


class Unit(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.normalize(super().forward(features))


def test_an_embedding_of_data_without_class_names_is_not_drawn_either(
    run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Spots, "classes")
    fit = run(cb(), with_outputs(Unit(6, 8)), max_epochs=1).fit()

    assert fit.alerts == [("raised", "classes", "classes_differ", 0)]
    assert "length 1" in fit.callback.alerts[0].message
    assert fit.events.steps(PANEL) == []


@pytest.mark.parametrize("names", [[], [*"abcdefgh"]], ids=["none", "as many"])
def test_numbers_that_are_said_to_be_classes_are_drawn(run: MakeRun, names: list[str]) -> None:
    fit = run(cb(class_names=names), with_outputs(Unit(6, 8)), max_epochs=1).fit()

    assert fit.alerts == []
    assert fit.events.steps(PANEL) == [STEPS]


def test_of_several_outputs_of_one_shape_the_first_is_explained_and_it_is_said(
    run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    class TwoHeads(Classifier):
        def forward(self, images: Tensor) -> Any:
            logits = super().forward(images)
            return logits, -logits

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.nn.functional.cross_entropy(self(batch[0])[0], batch[1])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch[0])

    with caplog.at_level(logging.INFO, "gradcam_callback"):
        run(cb(), TwoHeads(), max_epochs=2).fit()
        run(cb(output=1), TwoHeads(), max_epochs=1).fit()
    told = [record.message for record in caplog.records if "outputs of one shape" in record.message]
    assert len(told) == 1
    assert "returns 2 outputs" in told[0]
    assert "`output`" in told[0]


def test_what_is_to_be_said_of_the_layer_of_auto_is_said_and_stands_in_the_panel(
    run: MakeRun, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_FEW", 1)
    monkeypatch.setattr(auto, "_EARLY", 2)
    titles: list[str] = []
    original = PanelRenderer.panels

    def keep(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        titles.extend(page.title for pages in found.values() for page in pages)
        return found

    monkeypatch.setattr(PanelRenderer, "panels", keep)
    with caplog.at_level(logging.INFO, "gradcam_callback"):
        run(GradCAMCallback(probes=3), max_epochs=1).fit()
    assert any("It is an early layer" in record.message for record in caplog.records)
    assert f" · {auto.EARLY} · " in titles[-1]


def own_map(module: Classifier, images: Tensor, probe: int, target: int) -> Tensor:
    """Grad-CAM of one image's own score, by plain autograd, with all images in the batch."""
    kept: list[Tensor] = []
    handle = module.model.stage.register_forward_hook(lambda _module, _args, output: kept.append(output))
    score = module.eval()(images)[probe, target]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    return (gradient[probe].mean((1, 2), keepdim=True) * kept[0][probe].detach()).sum(0).relu()


def test_samples_that_depend_on_each_other_are_explained_by_their_own_scores_and_it_is_said(
    run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    module = Classifier(Network(lambda maps: maps - maps.mean(0)))
    with caplog.at_level(logging.INFO, "gradcam_callback"):
        fit = run(cb(), module, max_epochs=2).fit()

    assert len([record for record in caplog.records if "depend on each other" in record.message]) == 1
    result, probes = fit.callback.last_result, fit.callback.probes
    assert result is not None
    assert probes is not None
    for probe, cam in enumerate(result.cams[LAYER]):
        expected = own_map(module, probes.images, probe, int(result.targets[probe]))
        torch.testing.assert_close(cam, expected, rtol=1e-4, atol=1e-7)


def test_stacked_images_are_an_alert_until_channels_are_chosen(run: MakeRun) -> None:
    data, alerts = loader(Spots(channels=6)), []
    for number, channels in enumerate((None, [3, 4, 5])):
        callback = cb(channels=channels)
        fit = run(callback, Classifier(Network(channels=6)), max_epochs=1, folder=str(number)).fit(data, data)
        alerts.append(fit.alerts)

    assert alerts == [[("raised", "channels", "channels_hidden", 0)], []]


def test_grey_images_without_a_channel_reach_the_model_as_they_are(run: MakeRun) -> None:
    class Grey(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            assert images.ndim == 3
            return super().forward(images.unsqueeze(1))

    class Flattened(Spots):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image[0], label

    data = loader(Flattened(channels=1))
    fit = run(cb(), Grey(Network(channels=1)), max_epochs=1).fit(data, data)

    assert fit.alerts == []
    assert fit.events.steps(PANEL) == [STEPS]
    assert fit.callback.last_result is not None
    assert fit.callback.last_result.heatmaps()[LAYER].shape == (4, 16, 16)


def test_a_weight_that_forward_writes_to_is_an_alert_that_names_its_module(run: MakeRun) -> None:
    class Clamping(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            if not self.training:
                with torch.no_grad():
                    self.model.fc.weight.mul_(0.999)
            return super().forward(images)

    fit = run(cb(), Clamping(), max_epochs=2).fit()

    assert fit.alerts == [("raised", "weights", "weights_modified", 0)]
    assert "'model.fc'" in fit.callback.alerts[0].message
    assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS]


# Before the first training step


@pytest.mark.parametrize(
    "settings",
    [{"num_sanity_val_steps": 2}, {}, {"check_val_every_n_epoch": 3}, {"val_check_interval": 1}],
    ids=["sanity check", "none", "late validation", "validation in the epoch"],
)
def test_on_null_raise_ends_a_run_before_its_first_step(run: MakeRun, settings: dict[str, Any]) -> None:
    fit = run(cb(on_null="raise"), detached(), **settings)
    with pytest.raises(GradientNullError, match="detach"):
        fit.fit()

    assert fit.trainer.global_step == 0
    assert all(parameter.grad is None for parameter in fit.module.parameters())


@pytest.mark.parametrize("sanity", [0, 2])
def test_what_the_dry_run_finds_is_not_said_again_by_a_validation_with_other_images(run: MakeRun, sanity: int) -> None:
    fit = run(cb(12), detached(), num_sanity_val_steps=sanity, max_epochs=2).fit()

    assert fit.alerts == [("raised", LAYER, "detached", 0)]
    assert fit.callback.alerts[0].step == 0
    assert len(fit.our_warnings()) == 1


def test_without_validation_there_is_no_dry_run(run: MakeRun) -> None:
    fit = run(cb(on_null="raise"), detached(), limit_val_batches=0, max_epochs=1).fit()

    assert fit.trainer.global_step == STEPS


def test_training_batches_of_another_form_are_passed_over(run: MakeRun) -> None:
    """The validation has dictionaries; of the training's tuples nothing can be said."""
    probes = ValidationProbes(n=4, image_key="x", label_key="y")
    fit = run(cb(probes, target="label"), max_epochs=1).fit(val=loader(Named("x", "y")))

    assert fit.alerts == []
    assert fit.events.steps(PANEL) == [STEPS]


def test_every_n_epochs_keeps_its_rhythm_over_a_resume(run: MakeRun) -> None:
    _, path = checkpointed(run, cb(every_n_epochs=2))
    second = run(cb(every_n_epochs=2), max_epochs=5, folder="second").fit(ckpt_path=path, **UNPICKLE)

    assert second.events.steps(PANEL) == [3 * STEPS, 5 * STEPS]


def test_two_callbacks_that_differ_in_looks_alone(run: MakeRun) -> None:
    other = cb(colormap="gray", scale="shared")
    fit = run(cb(), max_epochs=1, callbacks=[other]).fit()

    assert set(fit.events.images) == {PANEL, f"{PANEL}_2"}


def test_other_looks_after_a_resume_keep_probes_and_alerts(run: MakeRun) -> None:
    first = run(cb(seeded := ValidationProbes(n=2, seed=5)), detached(), max_epochs=1, folder="first").fit()
    first.trainer.save_checkpoint(first.folder / "last.ckpt")
    second = run(cb(seeded, colormap="gray"), detached(), max_epochs=2, folder="second")
    second.fit(ckpt_path=first.folder / "last.ckpt", **UNPICKLE)

    assert first.callback.probes is not None
    assert second.callback.probes is not None
    assert second.callback.probes.indices == first.callback.probes.indices
    assert [alert.epoch for alert in second.callback.alerts] == [0]


def test_a_trainer_within_a_training_keeps_to_itself(run: MakeRun, tmp_path: Path) -> None:
    """A hook of the user's validates with a second Trainer and the same callback."""

    class Inner(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            inner = make_run(tmp_path / f"inner{trainer.current_epoch}", fit.callback, pl_module)
            inner.validate()
            pl_module.trainer = trainer

    fit = run(cb(), callbacks=[Inner()], folder="outer")
    fit.fit()

    assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS, 3 * STEPS]
    assert counts(fit) == {3}
    assert fit.alerts == []
    for epoch in range(3):
        assert Events.read(tmp_path / f"inner{epoch}").steps(staged(PANEL, "validate")) == [0]


# Bad input, at the earliest moment


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "gradcamm"}, ["gradcamm", "'gradcam'", "layercam"]),
        ({"colormap": "turb0"}, ["turb0", "turbo"]),
        ({"every_n_epochs": 0}, ["every_n_epochs", "at least 1", "0"]),
        ({"every_n_epochs": True}, ["every_n_epochs", "True"]),
        ({"every_n_epochs": "2"}, ["every_n_epochs", "'2'"]),
        ({"on_null": "crash"}, ["on_null", "'warn'", "'raise'", "'ignore'", "'crash'"]),
        ({"scale": "all"}, ["scale", "'each'", "'shared'", "'all'"]),
        ({"opacity": 1.5}, ["opacity", "1.5"]),
        ({"opacity": "half"}, ["opacity", "half"]),
        ({"target": "cat"}, ["'predicted'", "'label'", "class index", "'cat'"]),
        ({"target": -1}, ["class index", "-1"]),
        ({"target": []}, ["target", "[]"]),
        ({"target": ["label", "label"]}, ["different", "label"]),
        ({"target": 1.5}, ["target", "1.5"]),
        ({"target": None}, ["target", "None"]),
        ({"probes": 0}, ["at least 1", "0"]),
        ({"probes": [1, 1]}, ["more than once", "1"]),
        ({"probes": []}, ["empty"]),
        ({"probes": "8"}, ["probes", "'8'"]),
        ({"probes": [-1]}, ["at least 0", "-1"]),
        ({"target_layers": []}, ["auto"]),
        ({"target_layers": 4}, ["names", "4"]),
        ({"output": 1.5}, ["output", "1.5"]),
        ({"class_names": "cat"}, ["class_names", "cat"]),
        ({"mean": 0.5}, ["mean", "0.5"]),
    ],
    ids=repr,
)
def test_options_are_checked_when_they_are_given(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        GradCAMCallback(**options)

    for word in words:
        assert word in str(error.value)


def refused(look: Run, val: Any = 12) -> str:
    """The message of the error that ends the run before its first training step."""
    trained = []

    class Count(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            trained.append(1)

    look.trainer.callbacks.append(Count())  # type: ignore[attr-defined]
    with pytest.raises((ValueError, TypeError)) as error:
        look.fit(val=val)
    assert trained == []
    return str(error.value)


def test_an_unknown_layer_is_refused_with_the_closest_names(run: MakeRun) -> None:
    message = refused(run(cb(target_layers="stage")))

    assert "'stage'" in message
    assert "'model.stage'" in message


def test_an_unknown_layer_is_refused_before_the_sanity_check(run: MakeRun) -> None:
    class Untouched(Classifier):
        def validation_step(self, *args: Any) -> None:
            raise AssertionError("too late")

    assert "model.stage" in refused(run(cb(target_layers="model.stag"), Untouched(), num_sanity_val_steps=2))


@pytest.mark.parametrize("entry", ["validate", "test"])
def test_an_unknown_layer_is_refused_in_every_entry_point(run: MakeRun, entry: str) -> None:
    with pytest.raises(ValueError, match=r"model\.stage"):
        getattr(run(cb(target_layers="model.stag")), entry)()


def test_a_layer_without_space_is_an_alert(run: MakeRun) -> None:
    fit = run(cb(target_layers="model.fc"), max_epochs=1).fit()

    assert fit.alerts == [("raised", "model.fc", "unsupported_output", 0)]
    [text] = fit.our_warnings()
    assert "(4, 3)" in text
    assert "Choose a layer" in text


def test_an_empty_data_set_is_no_error(run: MakeRun) -> None:
    fit = run(cb(), max_epochs=1).fit(val=loader(Spots(0)))

    assert fit.trainer.global_step == STEPS
    assert fit.alerts == []


def test_a_loader_index_out_of_range_is_refused(run: MakeRun) -> None:
    message = refused(run(cb(ValidationProbes(n=2, dataloader_idx=3))))

    assert "dataloader_idx=3" in message
    assert "there are 1" in message


def test_a_class_that_does_not_exist_is_refused(run: MakeRun) -> None:
    message = refused(run(cb(target=3)))

    assert "3" in message
    assert "0 to 2" in message


def test_missing_labels_are_refused_where_they_are_the_target(run: MakeRun) -> None:
    message = refused(run(cb(target="label"), num_sanity_val_steps=1), val=loader(Bare(12)))

    assert "label" in message
    assert "label_key" in message
    assert "predicted" in message


def test_what_only_the_validation_can_tell_is_an_alert(run: MakeRun) -> None:
    """The training batches have labels, and there is no sanity check."""
    fit = run(cb(target="label"), max_epochs=2).fit(val=loader(Bare(12)))

    assert fit.alerts == [("raised", "probes", "callback_failed", 0)]
    assert "label_key" in fit.callback.alerts[0].message
    assert fit.trainer.global_step == 2 * STEPS


def test_auto_refuses_a_model_without_convolution(run: MakeRun) -> None:
    message = refused(run(GradCAMCallback(probes=2), Classifier(Flat())))

    assert "auto" in message
    assert "target_layers" in message


def test_logits_that_are_not_where_output_says_are_refused(run: MakeRun) -> None:
    message = refused(run(cb(output="logits")))

    assert "'logits'" in message
    assert "output" in message


def test_a_wrong_image_key_is_refused(run: MakeRun) -> None:
    message = refused(run(cb(ValidationProbes(n=2, image_key="x")), num_sanity_val_steps=1), val=loader(Named()))

    assert "'x'" in message
    assert "'image'" in message


def test_a_mean_of_the_wrong_length_is_refused(run: MakeRun) -> None:
    message = refused(run(cb(mean=(0.5, 0.5), std=(0.5, 0.5))))

    assert "mean" in message
    assert "2" in message
    assert "3 channels" in message


@pytest.mark.parametrize(
    ("options", "words"), [({"target": 7}, ["0 to 2"]), ({"target": "label"}, ["label_key"])], ids=repr
)
def test_what_validate_cannot_do_is_said_too(run: MakeRun, options: dict[str, Any], words: list[str]) -> None:
    look = run(cb(**options)).validate(loader(Bare(12)))
    message = "\n".join(look.our_warnings())

    for word in words:
        assert word in message


# Copies


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_copies_work_before_and_after_a_run(run: MakeRun, twin: Callable[[GradCAMCallback], GradCAMCallback]) -> None:
    fit = run(twin(cb()), max_epochs=1, folder="a").fit()
    again = twin(fit.callback)
    run(again, max_epochs=1, folder="b").fit()

    assert again.probes is not None
    assert fit.callback.probes is not None
    assert again.probes.fingerprint == fit.callback.probes.fingerprint
    assert make_run(fit.folder.parent / "b").events.steps(PANEL) == [STEPS]


def test_a_copy_can_be_made_in_the_middle_of_a_run(run: MakeRun) -> None:
    copies = []

    class Copying(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            copies.append(pickle.loads(pickle.dumps(fit.callback)))

    fit = run(cb(), max_epochs=2, callbacks=[Copying()])
    fit.fit()

    assert len(copies) == 2
    assert fit.events.steps(PANEL) == [STEPS, 2 * STEPS]
