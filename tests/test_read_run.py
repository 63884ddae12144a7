"""Reading real runs back: what the callback saw is there, and what is not is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from models import STEPS, UNPICKLE
from recordings import MadeUpRun, write_run

from gradcam_callback import CAMResult, GradCAMCallback, Recording, TensorProbes, read_run

MakeRun = Callable[..., Run]
LAYER = "model.stage"


def cb(**options: Any) -> GradCAMCallback:
    return GradCAMCallback(**{"target_layers": LAYER, "probes": 4, **options})


class Notes(Callback):
    """What the callback has after each validation."""

    def __init__(self, callback: GradCAMCallback) -> None:
        self.callback = callback
        self.results: list[CAMResult] = []

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking and self.callback.last_result is not None:
            self.results.append(self.callback.last_result)


def assert_holds(recording: Recording, results: list[CAMResult]) -> None:
    """Whether a recording's first target is what the results were."""
    assert len(recording) == len(results)
    for look, result in enumerate(results):
        cams, verdict = result.cams[LAYER].numpy(), result.health[LAYER]
        maps = recording.maps[LAYER][look, 0]
        assert maps.dtype == np.float32
        tolerance = np.nanmax(cams, axis=(1, 2), keepdims=True) / 255
        np.testing.assert_array_less(np.abs(maps - cams), np.broadcast_to(tolerance + 1e-12, cams.shape))
        np.testing.assert_allclose(recording.gradient_norms[LAYER][look, 0], verdict.gradient_norm, rtol=1e-6)
        assert recording.states[LAYER][look, 0].tolist() == [state.value for state in verdict.state]
        assert recording.classes[look, 0].tolist() == result.targets.tolist()
        assert recording.predictions[look].tolist() == result.predictions.tolist()
        np.testing.assert_allclose(recording.scores[look, 0], result.scores, rtol=1e-6)
        chosen = result.probabilities[torch.arange(len(result.targets)), result.targets]
        np.testing.assert_allclose(recording.probabilities[look, 0], chosen, rtol=1e-5)


@pytest.mark.parametrize("logger", ["tensorboard", "csv", "none"])
def test_what_the_callback_saw(run: MakeRun, tmp_path: Path, logger: str) -> None:
    callback = cb(target=["predicted", "label"])
    notes = Notes(callback)
    options = {"csv": {"logger": CSVLogger(tmp_path, "c", "v")}, "none": {"logger": False}}.get(logger, {})
    fit = run(callback, callbacks=[notes], **options).fit()

    recording = read_run(fit.folder)

    assert_holds(recording, notes.results)
    assert recording.targets == ("predicted", "label")
    assert recording.layers == (LAYER,)
    assert recording.epochs.tolist() == [0, 1, 2]
    assert recording.steps.tolist() == [STEPS, 2 * STEPS, 3 * STEPS]
    assert (np.diff(recording.wall_times) > 0).all()
    assert recording.notes == ()
    assert recording.alerts == ()
    probes = callback.probes
    assert probes is not None
    assert recording.probes.names == probes.names
    assert recording.probes.labels == tuple(probes.labels.tolist())  # type: ignore[union-attr]
    assert recording.probes.fingerprint == probes.fingerprint
    labels = torch.tensor(recording.probes.labels)
    expected = notes.results[-1].probabilities[torch.arange(4), labels]
    np.testing.assert_allclose(recording.label_probabilities[-1], expected, rtol=1e-5)


def test_small_images_come_back_without_loss(run: MakeRun) -> None:
    images = torch.randint(0, 256, (3, 3, 40, 24)) / 255
    fit = run(cb(probes=TensorProbes(images, labels=[0, 1, 2])), max_epochs=1).fit()
    probes = read_run(fit.folder).probes
    assert len(probes) == 3
    for picture, image in zip(probes.images, images, strict=True):
        np.testing.assert_array_equal(picture, (image * 255).round().byte().permute(1, 2, 0).numpy())


def test_large_images_are_kept_as_photographs(run: MakeRun) -> None:
    smooth = torch.linspace(0, 1, 600).expand(1, 3, 400, 600).contiguous()
    fit = run(cb(probes=TensorProbes(smooth)), max_epochs=1).fit()
    recording = read_run(fit.folder)
    [image] = recording.pictures[0].images
    assert (image.media_type, image.width, image.height) == ("image/jpeg", 600, 400)
    [picture] = recording.probes.images
    assert picture.shape == (341, 512, 3)
    expected = np.linspace(0, 255, 512)
    assert np.abs(picture[100].mean(axis=1) - expected).max() < 3


def test_a_pass_without_a_gradient(run: MakeRun) -> None:
    from models import detached

    fit = run(cb(bridge=False), detached(), max_epochs=2).fit()
    recording = read_run(fit.folder)
    assert np.isnan(recording.maps[LAYER]).all()
    assert set(recording.states[LAYER].ravel()) == {"none"}
    assert [alert["status"] for alert in recording.alerts] == ["raised"]


def test_a_map_across_a_cut(run: MakeRun) -> None:
    from models import detached

    callback = cb()
    fit = run(callback, detached(), max_epochs=1).fit()
    recording = read_run(fit.folder)
    assert (recording.flags[LAYER] & 2).all()
    assert np.isfinite(recording.maps[LAYER]).all()


# Runs that are not plain


def test_a_resumed_run_in_the_same_folder(run: MakeRun, tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path / "kept", save_top_k=-1)
    run(cb(), max_epochs=3, callbacks=[kept], enable_checkpointing=True).fit()
    [middle] = [path for path in (tmp_path / "kept").iterdir() if "epoch=1" in path.name]
    second = run(cb(), max_epochs=5).fit(ckpt_path=middle, **UNPICKLE)

    recording = read_run(second.folder)

    assert recording.epochs.tolist() == [0, 1, 2, 3, 4]
    assert "1 earlier look(s) were left out" in " ".join(recording.notes)
    assert (np.diff(recording.wall_times) > 0).all()
    assert len(recording.pictures) == 1


def test_a_resumed_run_in_another_folder(run: MakeRun, tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path / "kept")
    run(cb(), max_epochs=2, callbacks=[kept], enable_checkpointing=True, folder="first").fit()
    [path] = (tmp_path / "kept").iterdir()
    second = run(cb(), max_epochs=4, folder="second").fit(ckpt_path=path, **UNPICKLE)
    assert read_run(tmp_path / "first").epochs.tolist() == [0, 1]
    assert read_run(second.folder).epochs.tolist() == [2, 3]
    with pytest.raises(ValueError, match=r"There are 2 recorded runs below .*first.*second.*Give one of them"):
        read_run(tmp_path)


def test_a_killed_run_loses_the_last_record_alone(tmp_path: Path) -> None:
    run = MadeUpRun(looks=3, probes=2, cells=(2, 2))
    path = write_run(tmp_path / "run", run)
    before = path.stat().st_size
    whole = path.read_bytes()
    path.unlink()
    shorter = write_run(tmp_path / "run", list(run.records())[:-1]).stat().st_size
    for length in range(shorter + 1, before):
        path.write_bytes(whole[:length])
        recording = read_run(tmp_path / "run")
        assert len(recording) == 2
        [note] = recording.notes
        assert "could not be read" in note
        assert "cut short" in note


def test_a_hostile_record_is_said_and_left_out(tmp_path: Path) -> None:
    run = MadeUpRun(looks=3)
    path = write_run(tmp_path / "run", run)
    damaged = path.read_bytes()
    at = damaged.index(b"GCR\x01", damaged.index(b"GCR\x01") + 4)
    path.write_bytes(damaged[:at] + b"GCR\x07" + damaged[at + 4 :])
    recording = read_run(path)
    assert recording.epochs.tolist() == [1, 2]
    assert "it is of schema 7" in recording.notes[0]


def test_several_validations_at_one_step(run: MakeRun) -> None:
    notes = Notes(callback := cb())
    fit = run(callback, max_epochs=1, callbacks=[notes], accumulate_grad_batches=STEPS, val_check_interval=1).fit()
    recording = read_run(fit.folder)
    assert len(recording) == STEPS > len(set(recording.steps.tolist()))
    assert_holds(recording, notes.results)


def test_two_callbacks_in_one_trainer(run: MakeRun) -> None:
    other = GradCAMCallback("model.stem", probes=2, target="label")
    fit = run(cb(), callbacks=[other], max_epochs=2).fit()
    recording = read_run(fit.folder)
    assert recording.layers == (LAYER,)
    assert set(recording.maps) == {LAYER, "model.stem"}
    second = recording.others["fit, callback 2"]
    assert second.maps["model.stem"].shape[:3] == (2, 1, 2)
    assert second.targets == ("label",)
    np.testing.assert_array_equal(recording.maps["model.stem"], second.maps["model.stem"])


def test_validate_and_test_are_beside_the_training(run: MakeRun) -> None:
    fit = run(cb(), max_epochs=2).fit().validate().validate().test()
    recording = read_run(fit.folder)
    assert len(recording) == 2
    assert {name: len(other) for name, other in recording.others.items()} == {"validate": 2, "test": 1}


def test_probes_that_change_half_way(run: MakeRun, tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path / "kept")
    run(cb(), max_epochs=2, callbacks=[kept], enable_checkpointing=True).fit()
    [path] = (tmp_path / "kept").iterdir()
    more = cb(probes=TensorProbes(torch.rand(6, 3, 16, 16), labels=[0] * 6))
    fit = run(more, max_epochs=4).fit(ckpt_path=path, **UNPICKLE)

    recording = read_run(fit.folder)

    assert recording.probe_set_of.tolist() == [0, 0, 1, 1]
    assert [len(probes) for probes in recording.probe_sets] == [4, 6]
    assert len(recording.probes) == 6
    maps = recording.maps[LAYER]
    assert maps.shape[2] == 6
    assert np.isnan(maps[:2, :, 4:]).all()
    assert np.isfinite(maps[2:]).all()
    assert (recording.states[LAYER][:2, :, 4:] == "unrecorded").all()


def test_maps_that_change_their_size(tmp_path: Path) -> None:
    before = list(MadeUpRun(looks=2, cells=(4, 4)).records())
    after = list(MadeUpRun(looks=3, cells=(7, 7), first=2, session=(2.0, "b")).records())
    write_run(tmp_path / "run", [*before, *after])
    recording = read_run(tmp_path / "run")
    assert recording.maps["net.stage"].shape[3:] == (7, 7)
    assert np.isnan(recording.maps["net.stage"][:2]).all()
    assert np.isfinite(recording.maps["net.stage"][2:]).all()
    assert "2 look(s) have maps of 4 x 4 cells" in recording.notes[0]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no .*nowhere"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"There is no recording in .*empty"):
        read_run(tmp_path / "empty")


def test_a_folder_in_memory(tmp_path: Path) -> None:
    import fsspec

    path = write_run(tmp_path / "run", MadeUpRun())
    system = fsspec.filesystem("memory")
    system.pipe_file(f"/runs/a/{path.name}", path.read_bytes())
    try:
        assert len(read_run("memory://runs/a")) == 12
    finally:
        system.rm("/runs", recursive=True)


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "run", MadeUpRun())
    code = f"""
import sys, gradcam_callback
recording = gradcam_callback.read_run({str(tmp_path / "run")!r})
assert recording.maps["net.stage"].shape == (12, 2, 6, 7, 7)
assert recording.probes.images[0].shape == (48, 48, 3)
assert "<iframe" in recording._repr_html_()
print([name for name in ("torch", "lightning", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_recording_says_what_it_is(tmp_path: Path) -> None:
    write_run(tmp_path / "run", MadeUpRun())
    assert repr(read_run(tmp_path / "run")).endswith(
        "run', 12 looks, targets predicted, label; maps: net.stage (12, 2, 6, 7, 7))"
    )


def test_a_recording_without_its_pictures(tmp_path: Path) -> None:
    write_run(tmp_path / "run", list(MadeUpRun(looks=2).records())[1:])
    recording = read_run(tmp_path / "run")
    assert "The probe images of some looks could not be read." in recording.notes
    with pytest.raises(LookupError, match="could not be read"):
        _ = recording.probes
