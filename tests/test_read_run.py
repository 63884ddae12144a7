"""What a run recorded is what its callback had: read back from real runs, whole, resumed, killed and changed."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, make_run
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from models import STEPS, UNPICKLE, Classifier, Faulty, Spots, detached
from test_image_sizes import Detector, fitted
from test_image_sizes import samples as detection_samples
from test_spaces import Learner, some
from torch.utils.data import DataLoader

from gradcam_callback import CAMResult, GradCAMCallback, Recording, TensorProbes, read_run
from gradcam_callback.causes import Cause
from gradcam_callback.recording.reading import read_runs
from gradcam_callback.reporting.report import Report
from gradcam_callback.reporting.sinks.tensorboard import TensorBoardSink
from gradcam_callback.viewer.report import ENTRY, WEB

MakeRun = Callable[..., Run]

LAYER = "model.stage"


def cb(probes: Any = 4, target_layers: Any = LAYER, **options: Any) -> GradCAMCallback:
    return GradCAMCallback(target_layers, probes, **options)


class Keeper(Callback):
    """Keeps what a callback has after each validation: step, epoch, maps."""

    def __init__(self, callback: GradCAMCallback) -> None:
        self.callback, self.steps, self.epochs = callback, list[int](), list[int]()
        self.results: list[CAMResult] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.callback.last_result is not None and not trainer.sanity_checking:
            self.steps.append(trainer.global_step)
            self.epochs.append(trainer.current_epoch)
            self.results.append(self.callback.last_result)


def kept(run: MakeRun, callback: GradCAMCallback, module: Any = None, **settings: Any) -> tuple[Run, Keeper]:
    """A Run, and what its callback will have had at each look."""
    keeper = Keeper(callback)
    return run(callback, module, callbacks=[keeper, *settings.pop("callbacks", [])], **settings), keeper


def assert_recorded(recording: Recording, keeper: Keeper, layer: str = LAYER) -> None:
    """Of the first target all that a `CAMResult` holds, at every look."""
    assert recording.steps.tolist() == keeper.steps
    assert recording.epochs.tolist() == keeper.epochs
    assert len(recording) == len(keeper.results)
    for position, result in enumerate(keeper.results):
        assert_look(recording, position, result, layer)


def assert_look(recording: Recording, position: int, result: CAMResult, layer: str = LAYER) -> None:
    cams, health = result.cams[layer].numpy(), result.health[layer]
    maps = recording.maps[layer][position, 0]
    bound = np.nan_to_num(cams.max((1, 2), keepdims=True)) / 255
    assert (np.abs(np.nan_to_num(maps) - np.nan_to_num(cams)) <= bound).all()
    np.testing.assert_array_equal(np.isnan(maps), np.isnan(cams))
    assert recording.states[layer][position, 0].tolist() == [str(state) for state in health.state]
    assert (recording.flags[layer][position, 0] & 1).astype(bool).tolist() == list(health.empty)
    np.testing.assert_array_equal(recording.gradient_norms[layer][position, 0], health.gradient_norm)
    assert recording.classes[position, 0].tolist() == result.targets.tolist()
    np.testing.assert_array_equal(recording.scores[position, 0], result.scores)
    assert recording.predictions[position].tolist() == result.predictions.tolist()
    rows = torch.arange(len(result.targets))
    for recorded, classes in (
        (recording.probabilities[position, 0], result.targets),
        (recording.prediction_probabilities[position], result.predictions),
    ):
        np.testing.assert_allclose(recorded, result.probabilities[rows, classes], rtol=1e-6)


def labels_of(recording: Recording) -> list[int]:
    return [label for label in recording.probes.labels if label is not None]


# One run


@pytest.mark.parametrize("kind", ["TensorBoardLogger", "CSVLogger", "no logger", "both", "CSVLogger first"])
def test_what_is_read_is_what_the_callback_had_whatever_the_logger(run: MakeRun, tmp_path: Path, kind: str) -> None:
    board, table = TensorBoardLogger(tmp_path, "logs", "board"), CSVLogger(tmp_path, "logs", "table")
    loggers = {"TensorBoardLogger": board, "CSVLogger": table, "no logger": False}
    loggers |= {"both": [board, table], "CSVLogger first": [table, board]}
    callback = cb(target=["predicted", "label"])
    fit, keeper = kept(run, callback, logger=loggers[kind])
    fit.fit()

    recording = read_run(tmp_path)
    assert_recorded(recording, keeper)
    assert (recording.stage, recording.callback, recording.method) == ("fit", 1, "gradcam")
    assert recording.task == "classification"
    assert recording.targets == ("predicted", "label")
    assert recording.class_names == ("ant", "bee", "cat")
    assert recording.layers == (LAYER,)
    assert recording.notes == ()
    assert recording.alerts == ()
    assert dict(recording.others) == {}
    assert recording.steps.tolist() == [STEPS, 2 * STEPS, 3 * STEPS]
    assert (np.diff(recording.wall_times) > 0).all()


def test_the_second_target_and_the_probability_of_the_label(run: MakeRun) -> None:
    fit = run(cb(target=["predicted", "label"]), max_epochs=1, logger=False).fit()
    recording = read_run(fit.folder)
    result = fit.callback.last_result
    assert result is not None
    labels = torch.tensor([0, 1, 2, 0])
    assert recording.classes[0, 1].tolist() == labels.tolist() == labels_of(recording)
    expected = result.probabilities[torch.arange(4), labels]
    np.testing.assert_allclose(recording.probabilities[0, 1], expected, rtol=1e-6)
    np.testing.assert_allclose(recording.label_probabilities[0], expected, rtol=1e-6)


def test_the_pictures_of_small_images_are_those_images(run: MakeRun) -> None:
    fit = run(cb(), max_epochs=2, logger=False).fit()
    recording = read_run(fit.folder)
    assert len(recording.probe_sets) == 1
    probes = recording.probes
    assert fit.callback.probes is not None
    assert probes.fingerprint == fit.callback.probes.fingerprint
    assert probes.names == fit.callback.probes.names
    assert len(probes) == 4
    for number, picture in enumerate(probes.images):
        expected = (Spots()[number][0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(picture, expected)


def test_states_and_alerts_of_gradients_that_come_and_go(run: MakeRun) -> None:
    fit, keeper = kept(run, cb(), Faulty([[], [0, 2], [0], []]), max_epochs=4, logger=False)
    fit.fit()
    recording = read_run(fit.folder)

    assert_recorded(recording, keeper)
    assert recording.states[LAYER][1, 0].tolist() == ["zero", "ok", "zero", "ok"]
    assert np.isnan(recording.maps[LAYER][1, 0, [0, 2]]).all()
    told = [(alert["status"], alert["epoch"], alert["step"], alert["probes"]) for alert in recording.alerts]
    assert told == [
        (str(alert.status), alert.epoch, alert.step, list(alert.finding.probes)) for alert in fit.callback.alerts
    ]
    assert [status for status, *_ in told] == ["raised", "changed", "cleared"]


def test_an_alert_has_all_that_is_in_its_file_and_the_code_around_its_line(run: MakeRun) -> None:
    fit = run(cb(), detached(), max_epochs=1, logger=False).fit()
    [alert] = read_run(fit.folder).alerts
    [line] = fit.alerts_file
    location = alert["location"]
    assert {name: value for name, value in alert.items() if name in line and name != "location"} == {
        name: value for name, value in line.items() if name != "location"
    }
    assert line["location"].items() <= location.items()
    assert alert["cause"] == Cause.DETACHED.value
    source = Path(location["file"]).read_text().splitlines()
    assert all(source[number - 1].strip() == text.strip() for number, text in location["around"])
    assert location["line"] in [number for number, _ in location["around"]]
    assert "#detached" in alert["url"]


def test_an_alert_without_a_look_is_read_too(run: MakeRun) -> None:
    """The probes cannot be used, so there is nothing to see, and that is said."""
    fit = run(cb([100]), max_epochs=1, logger=False).fit()
    assert fit.callback.alerts
    recording = read_run(fit.folder)
    assert len(recording) == 0
    assert [alert["message"] for alert in recording.alerts] == [alert.finding.message for alert in fit.callback.alerts]
    assert recording.layers == ()
    with pytest.raises(LookupError):
        _ = recording.probes


def test_a_layer_of_each_size_and_the_default_layer(run: MakeRun) -> None:
    fit, keeper = kept(run, cb(target_layers=["model.stem", LAYER], fuse=True), logger=False, max_epochs=2)
    fit.fit()
    recording = read_run(fit.folder)
    for layer in ("model.stem", LAYER):
        assert_recorded(recording, keeper, layer)
    assert recording.layouts == {"model.stem": "channels first", LAYER: "channels first"}


def test_two_validations_at_one_step_are_two_looks(run: MakeRun) -> None:
    fit, keeper = kept(run, cb(), accumulate_grad_batches=3, val_check_interval=1, max_epochs=2)
    fit.fit()
    assert keeper.steps == [0, 0, 1, 1, 1, 2]
    assert_recorded(read_run(fit.folder), keeper)


def test_two_callbacks_in_one_trainer(run: MakeRun) -> None:
    first, second = cb(), cb(6, "model.stem", method="gradcam++", target="label")
    seen = Keeper(second)
    fit, keeper = kept(run, first, callbacks=[second, seen])
    fit.fit()

    recording = read_run(fit.folder)
    assert_recorded(recording, keeper)
    other = recording.others["fit, callback 2"]
    assert_recorded(other, seen, "model.stem")
    assert (recording.method, other.method, other.callback) == ("gradcam", "gradcam++", 2)
    assert set(recording.maps) == {LAYER, "model.stem"}
    assert recording.layers == (LAYER,)
    assert (len(recording.probes), len(other.probes)) == (4, 6)
    assert list(recording.others) == ["fit, callback 2"]


def test_other_stages_are_recordings_of_their_own(run: MakeRun) -> None:
    fit = run(cb(), max_epochs=1).fit().validate()
    validated = fit.callback.last_result
    fit.test(DataLoader(Spots(8, start=50), 8))
    recording = read_run(fit.folder)

    assert (recording.stage, recording.steps.tolist()) == ("fit", [STEPS])
    assert list(recording.others) == ["validate", "test"]
    assert validated is not None
    assert_look(recording.others["validate"], 0, validated)
    assert fit.callback.last_result is not None
    assert_look(recording.others["test"], 0, fit.callback.last_result)
    assert recording.others["test"].probes.fingerprint != recording.probes.fingerprint
    assert set(recording.maps) == {LAYER}


def test_a_run_that_was_only_tested(run: MakeRun) -> None:
    tested = run(cb(), logger=False).test()
    recording = read_run(tested.folder)
    assert recording.stage == "test"
    assert tested.callback.last_result is not None
    assert_look(recording, 0, tested.callback.last_result)


# Other tasks and spaces


def test_boxes_and_extents_of_a_detector_that_takes_a_list(tmp_path: Path) -> None:
    layer = "network.backbone.0"
    fit = fitted(tmp_path, Detector())
    result = fit.callback.last_result
    assert result is not None
    recording = read_run(tmp_path)
    assert recording.task == "detection"
    assert recording.notes == ()
    cams = result.cams[layer].numpy()
    assert np.abs(recording.maps[layer][0, 0] - cams).max() <= cams.max() / 255
    assert recording.boxes is not None
    assert result.boxes is not None
    assert recording.boxes.shape == (1, 2, 4, 4)
    np.testing.assert_array_equal(recording.boxes[0, 0], result.boxes)
    assert recording.extents.keys() == result.extents.keys()
    np.testing.assert_allclose(recording.extents[layer][0], result.extents[layer], rtol=1e-6)
    for image, (original, _), record in zip(
        recording.probes.images, detection_samples(4), recording.pictures[0].images, strict=True
    ):
        assert image.shape == (*original.shape[1:], 3)
        assert (record.height, record.width) == original.shape[1:]
        np.testing.assert_array_equal(image, (original * 255).round().byte().permute(1, 2, 0))


@pytest.mark.parametrize("axes", [1, 3])
def test_signals_and_volumes(tmp_path: Path, axes: int) -> None:
    callback = GradCAMCallback("network.stage", probes=3)
    fit = make_run(tmp_path, callback, Learner(axes), max_epochs=1)
    data = DataLoader([(some(axes, 1)[0], 0) for _ in range(6)], batch_size=3)  # type: ignore[arg-type]
    fit.trainer.fit(fit.module, data, data)
    assert callback.alerts == []
    recording = read_run(tmp_path)
    assert callback.last_result is not None
    cams = callback.last_result.cams["network.stage"].numpy()
    maps = recording.maps["network.stage"]
    assert maps.shape == (1, 1, *cams.shape)
    assert maps.ndim == 3 + axes
    assert np.abs(maps[0, 0] - cams).max() <= cams.max() / 255
    [record] = recording.pictures
    height, width, _ = recording.probes.images[0].shape
    assert [image.slices for image in record.images] == [1 if axes == 1 else some(3).shape[2]] * 3
    assert (height, width) == (record.images[0].height * record.images[0].slices, record.images[0].width)


def test_a_regression_has_scores_and_neither_classes_nor_probabilities(run: MakeRun) -> None:
    class Regressor(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self(batch[0]).square().mean()

    callback = cb(target=[{"value": 0}, {"value": 1, "sign": "negative"}], task="regression")
    fit = run(callback, Regressor(), max_epochs=1, logger=False).fit()
    recording = read_run(fit.folder)
    assert recording.task == "regression"
    assert callback.last_result is not None
    np.testing.assert_array_equal(recording.scores[0, 0], callback.last_result.scores)
    for array in (recording.probabilities, recording.prediction_probabilities, recording.label_probabilities):
        assert np.isnan(array).all()
    assert (recording.predictions == -1).all()


def test_a_probe_with_nothing_to_explain_is_absent(run: MakeRun) -> None:
    """There is no second label of an image that has one."""

    class Labels(Spots):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image, torch.eye(3)[label] + (torch.eye(3)[1] if index == 0 else 0)

    class Multilabel(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return torch.nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.training_step(batch, batch_idx)

    data = DataLoader(Labels(12), 8)
    fit = run(cb(target={"positive": 2}), Multilabel(), max_epochs=1, logger=False).fit(data, data)
    assert fit.alerts == []
    recording = read_run(fit.folder)
    assert recording.task == "multilabel"
    assert recording.states[LAYER][0].tolist() == [["ok"] * 4, ["ok", "absent", "absent", "absent"]]
    assert np.isnan(recording.maps[LAYER][0, 1, 1:]).all()
    assert np.isfinite(recording.maps[LAYER][0, 0]).all()


# Resumed


def resumed(run: MakeRun, first: Run, checkpoint: Path, folder: str, **settings: Any) -> tuple[Run, Keeper]:
    second, keeper = kept(run, cb(), folder=folder, **settings)
    second.fit(ckpt_path=checkpoint, **UNPICKLE)
    return second, keeper


@pytest.fixture
def first(run: MakeRun) -> tuple[Run, Keeper, Path]:
    """A training of three epochs, and a checkpoint from its end."""
    fit, keeper = kept(run, cb(), folder="run")
    fit.fit()
    fit.trainer.save_checkpoint(path := fit.folder / "last.ckpt")
    return fit, keeper, path


def test_a_run_that_goes_on_in_the_same_folder_is_one(run: MakeRun, first: tuple[Run, Keeper, Path]) -> None:
    begun, keeper, path = first
    second, later = resumed(run, begun, path, "run", max_epochs=5)
    recording = read_run(second.folder)

    assert recording.steps.tolist() == [STEPS * epoch for epoch in range(1, 6)]
    assert recording.epochs.tolist() == keeper.epochs + later.epochs
    for position, result in enumerate(keeper.results + later.results):
        assert_look(recording, position, result)
    assert recording.notes == ()
    assert len(recording.probe_sets) == 1


def test_a_run_that_goes_on_in_another_folder_is_two(run: MakeRun, first: tuple[Run, Keeper, Path]) -> None:
    begun, keeper, path = first
    second, later = resumed(run, begun, path, "other", max_epochs=5)
    assert_recorded(read_run(begun.folder), keeper)
    assert_recorded(read_run(second.folder), later)
    assert later.steps == [4 * STEPS, 5 * STEPS]


def test_looks_that_a_resumed_run_made_again_are_left_out_and_said(run: MakeRun) -> None:
    class Save(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(path)

    fit, keeper = kept(run, cb(), folder="run", callbacks=[Save()])
    path = fit.folder / "first.ckpt"
    fit.fit()
    second, later = resumed(run, fit, path, "run", max_epochs=2)
    recording = read_run(second.folder)

    # The looks at 2 and 3 x STEPS were made on another way, and that way was left.
    assert recording.steps.tolist() == [STEPS, 2 * STEPS]
    assert_look(recording, 0, keeper.results[0])
    assert_look(recording, 1, later.results[-1])
    [note] = recording.notes
    assert f"2 earlier look(s) were left out: the training was resumed and made them again, from step {2 * STEPS}" in (
        note
    )


def test_alerts_that_a_resumed_run_made_again_are_there_once(run: MakeRun) -> None:
    class Save(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(path)

    plan = [[], [0], [0], []]
    fit, _ = kept(run, cb(), Faulty(plan), folder="run", callbacks=[Save()], max_epochs=3)
    path = fit.folder / "first.ckpt"
    fit.fit()
    second, _ = kept(run, cb(), Faulty(plan), folder="run", max_epochs=4)
    second.fit(ckpt_path=path, **UNPICKLE)

    recording = read_run(second.folder)
    assert [(alert["status"], alert["epoch"]) for alert in recording.alerts] == [("raised", 1), ("cleared", 3)]
    assert recording.epochs.tolist() == [0, 1, 2, 3]


def test_a_run_that_began_anew_in_the_same_folder_replaces_the_first(run: MakeRun) -> None:
    kept(run, cb(), folder="run")[0].fit()
    second, keeper = kept(run, cb(), folder="run", max_epochs=2)
    second.fit()
    recording = read_run(second.folder)
    assert_recorded(recording, keeper)
    assert "3 earlier look(s)" in recording.notes[0]


def test_fit_twice_with_one_trainer_goes_on(run: MakeRun) -> None:
    fit, keeper = kept(run, cb(), max_epochs=1)
    fit.fit()
    fit.trainer.fit_loop.max_epochs = 3
    fit.fit()
    assert_recorded(read_run(fit.folder), keeper)


def test_runs_without_a_logger_have_folders_of_their_own(run: MakeRun, tmp_path: Path) -> None:
    for epochs in (1, 2):
        run(cb(), logger=False, max_epochs=epochs).fit()
    runs = read_runs(tmp_path)
    assert [len(one) for one in runs] == [1, 2]
    with pytest.raises(ValueError, match="There are 2 recorded runs") as raised:
        read_run(tmp_path)
    for one in runs:
        assert repr(one.name) in str(raised.value)
        assert one.name.endswith(("version_0", "version_1"))


# Cut short


@pytest.fixture(scope="module")
def file_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """A recording's event file, and where its last record begins."""
    fit = make_run(tmp_path_factory.mktemp("run"), cb(2), logger=False, max_epochs=3).fit()
    [file] = fit.folder.rglob("*tfevents*")
    content = file.read_bytes()
    start = 0
    while (after := start + 16 + struct.unpack_from("<Q", content, start)[0]) < len(content):
        start = after
    assert after == len(content)
    return content, start


def test_wherever_a_killed_run_ends_in_its_last_record_nothing_else_is_lost(
    file_of_a_run: tuple[bytes, int], tmp_path: Path
) -> None:
    content, start = file_of_a_run
    file = tmp_path / "events.out.tfevents.1.host.1.gradcam"
    file.write_bytes(content)
    whole = read_run(file)
    assert (len(whole), whole.notes) == (3, ())
    for end in range(len(content) - 1, start - 1, -1):
        os.truncate(file, end)
        recording = read_run(file)
        assert len(recording) == 2
        np.testing.assert_array_equal(recording.maps[LAYER], whole.maps[LAYER][:2])
        assert len(recording.probes.images) == 2
        if end == start:
            assert recording.notes == ()
        else:
            [note] = recording.notes
            assert "cut short" in note


def test_a_record_that_is_damaged_inside_is_said_and_nothing_else_is_lost(
    file_of_a_run: tuple[bytes, int], tmp_path: Path
) -> None:
    content, start = file_of_a_run
    file = tmp_path / "events.out.tfevents.1.host.1.gradcam"
    for place in range(start + 12, len(content) - 4, 7):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        recording = read_run(file)
        assert len(recording) >= 2
        assert recording.steps.tolist()[:2] == [STEPS, 2 * STEPS]


def test_a_file_of_noise_is_no_recording(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for number in range(50):
        file = tmp_path / f"events.out.tfevents.{number}"
        file.write_bytes(chance.bytes(int(chance.integers(0, 400))))
    with pytest.raises(FileNotFoundError, match="no recording"):
        read_run(tmp_path)


def test_a_file_that_is_damaged_anywhere_is_read_or_there_is_no_recording_in_it(
    file_of_a_run: tuple[bytes, int], tmp_path: Path
) -> None:
    content, _ = file_of_a_run
    chance, read = random.Random(0), 0
    file = tmp_path / "events.out.tfevents.1"
    for _ in range(600):
        changed = bytearray(content)
        for _ in range(chance.choice([1, 1, 3, 20])):
            place = chance.randrange(len(changed))
            if chance.random() < 0.5:
                changed[place] = chance.randrange(256)
            elif chance.random() < 0.5:
                del changed[place : place + chance.randint(1, 20)]
            else:
                changed[place:place] = chance.randbytes(chance.randint(1, 20))
        file.write_bytes(changed)
        try:
            recording = read_run(file)
        except FileNotFoundError:
            continue
        read += 1
        assert all(np.isfinite(recording.wall_times))
        assert all(len(recording.maps[layer]) == len(recording) for layer in recording.layers)
    assert read > 200


def test_probes_that_could_not_be_written_are_written_with_the_next_look(
    run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, failed = TensorBoardSink.write, []

    def full_at_first(self: TensorBoardSink, report: Report) -> None:
        if report.records and not failed:
            failed.append(report.records[0].tag)
            raise OSError("no space left")
        write(self, report)

    monkeypatch.setattr(TensorBoardSink, "write", full_at_first)
    fit, keeper = kept(run, cb())
    fit.fit()
    recording = read_run(fit.folder)
    assert failed == ["gradcam/recording/probes"]
    assert_recorded(recording, keeper)
    assert recording.probe_set_of.tolist() == [0, 0, 0]
    assert [(status, subject) for status, subject, *_ in fit.alerts] == [("raised", "writing"), ("cleared", "writing")]


# Changed half-way


def images(count: int, seed: int) -> TensorProbes:
    generator = torch.Generator().manual_seed(seed)
    return TensorProbes(torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % 3)


def changed(run: MakeRun, *sources: TensorProbes) -> tuple[Recording, list[Keeper]]:
    """A training that is resumed with other probes after each epoch."""
    keepers, path = [], None
    for number, source in enumerate(sources, start=1):
        fit, keeper = kept(run, cb(source), max_epochs=number)
        fit.fit(**({} if path is None else {"ckpt_path": path, **UNPICKLE}))
        fit.trainer.save_checkpoint(path := fit.folder / f"{number}.ckpt")
        keepers.append(keeper)
    return read_run(fit.folder), keepers


def test_other_images_half_way(run: MakeRun) -> None:
    recording, keepers = changed(run, images(4, 0), images(4, 1), images(4, 0))
    assert recording.probe_set_of.tolist() == [0, 1, 0]
    assert len(recording.probe_sets) == 2
    for position, keeper in enumerate(keepers):
        assert_look(recording, position, keeper.results[0])
    one, other = (probes.images[0] for probes in recording.probe_sets)
    assert (one != other).any()


def test_another_number_of_probes_half_way(run: MakeRun) -> None:
    recording, keepers = changed(run, images(4, 0), images(6, 1), images(2, 2))
    assert [len(probes) for probes in recording.probe_sets] == [4, 6, 2]
    assert len(recording.probes) == 2
    for position, (keeper, count) in enumerate(zip(keepers, (4, 6, 2), strict=True)):
        cams = keeper.results[0].cams[LAYER].numpy()
        maps = recording.maps[LAYER][position, 0]
        assert np.abs(maps[:count] - cams).max() <= cams.max() / 255
        assert np.isnan(maps[count:]).all()
        assert (recording.states[LAYER][position, 0, count:] == "unrecorded").all()
        assert (recording.predictions[position, count:] == -1).all()


def test_maps_that_change_their_size_are_left_out_where_they_differ_from_the_last_and_that_is_said(
    run: MakeRun,
) -> None:
    class Finer(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 2:
                pl_module.model.stem.stride = (1, 1)

    fit, keeper = kept(run, cb(), logger=False, callbacks=[Finer()])
    fit.fit()
    recording = read_run(fit.folder)
    assert recording.maps[LAYER].shape == (3, 1, 4, 16, 16)
    assert np.isnan(recording.maps[LAYER][:2]).all()
    assert (recording.states[LAYER][:2] == "unrecorded").all()
    assert_look(recording, 2, keeper.results[2])
    for position in (0, 1):  # all else is there
        assert recording.predictions[position].tolist() == keeper.results[position].predictions.tolist()
    [note] = recording.notes
    assert "2 look(s) have maps of 8 x 8 cells at 'model.stage', and the last one of 16 x 16" in note


def test_another_layer_after_a_resume_stands_beside_the_first(run: MakeRun) -> None:
    fit, _ = kept(run, cb(), max_epochs=1)
    fit.fit()
    fit.trainer.save_checkpoint(path := fit.folder / "1.ckpt")
    second, _ = kept(run, cb(target_layers="model.stem"), max_epochs=2)
    second.fit(ckpt_path=path, **UNPICKLE)
    recording = read_run(second.folder)
    assert recording.layers == (LAYER, "model.stem")
    assert np.isnan(recording.maps[LAYER][1]).all()
    assert np.isnan(recording.maps["model.stem"][0]).all()
    assert np.isfinite(recording.maps["model.stem"][1]).all()


# Where there is none, or too much


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no event file there holds a look"):
        read_run(tmp_path)


def test_runs_without_the_callback_are_no_recordings(run: MakeRun, tmp_path: Path) -> None:
    plain = run(cb())
    plain.trainer.callbacks.remove(plain.callback)
    plain.fit()
    assert list(tmp_path.glob("*tfevents*"))
    with pytest.raises(FileNotFoundError):
        read_run(tmp_path)


def test_several_runs_are_told_apart_by_names_that_differ(run: MakeRun, tmp_path: Path) -> None:
    """As the folders of Lightning do: they all end in `lightning_logs/version_0`."""
    for project in ("cats", "dogs"):
        logger = TensorBoardLogger(tmp_path / project)
        run(cb(), logger=logger, max_epochs=1, folder=project).fit()
    names = {one.name for one in read_runs(tmp_path)}
    assert len(names) == 2
    with pytest.raises(ValueError, match="Give one of them") as raised:
        read_run(tmp_path)
    assert "cats" in str(raised.value)
    assert "dogs" in str(raised.value)
    assert len(read_run(tmp_path / "cats")) == 1


@pytest.mark.parametrize("name", ["path", "text", "relative", "with a slash", "file", "URL"])
def test_a_run_may_be_named_in_any_way(
    run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run(cb(), max_epochs=1, folder="the run").fit()
    folder = tmp_path / "the run"
    monkeypatch.chdir(tmp_path)
    [file] = folder.glob("*tfevents*")
    ways = {"path": folder, "text": str(folder), "relative": "the run", "with a slash": f"{folder}/", "file": file}
    assert len(read_run({**ways, "URL": f"file://{folder}"}[name])) == 1


def test_a_run_on_another_file_system(run: MakeRun) -> None:
    fit, keeper = kept(run, cb(), logger=False, max_epochs=2, default_root_dir="memory://runs/one")
    fit.fit()
    assert_recorded(read_run("memory://runs/one"), keeper)


def test_reading_imports_neither_torch_nor_lightning(run: MakeRun) -> None:
    fit = run(cb(), max_epochs=2).fit()
    code = """
import sys
import gradcam_callback
assert not {"torch", "lightning", "numpy", "tensorboard"} & set(sys.modules)
recording = gradcam_callback.read_run(sys.argv[1])
assert recording.maps["model.stage"].shape == (2, 1, 4, 8, 8)
assert recording.probes.images[0].shape == (16, 16, 3)
loaded = {"torch", "torchvision", "lightning", "matplotlib", "tensorflow"} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code, str(fit.folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_repr_says_what_is_in_it(run: MakeRun) -> None:
    fit = run(cb(), max_epochs=2).fit()
    assert repr(read_run(fit.folder)).endswith("2 looks, targets predicted; maps: model.stage (2, 1, 4, 8, 8))")


@pytest.mark.skipif(not (WEB / ENTRY).is_file(), reason="NOT TESTED: the viewer is not there")
def test_a_notebook_shows_the_viewer(run: MakeRun) -> None:
    fit = run(cb(), max_epochs=1).fit()
    assert isinstance(read_run(fit.folder)._repr_html_(), str)
