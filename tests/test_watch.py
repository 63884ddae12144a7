"""Grad-CAM in loops without a Trainer: plain torch and Fabric."""

from __future__ import annotations

import inspect
import json
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Events, make_run
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from models import CLASSES, Classifier, Named, Network, Spots, loader
from PIL import Image
from recorder import State, differences, flat, generators_state, modules_state, switches
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import default_collate
from torch.utils.tensorboard import SummaryWriter

from gradcam_callback import (
    GradCAMCallback,
    GradCAMWatch,
    GradientNullError,
    GradientNullWarning,
    ImageProbes,
    TensorProbes,
    ValidationProbes,
    compute_cam,
    read_run,
)
from gradcam_callback.report import write_report

LAYER = "stage"
PANEL = f"gradcam/{LAYER}"


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    images, labels = default_collate([Spots()[index] for index in range(count)])
    return images, labels


def network(on_map: Callable[[Tensor], Tensor] | None = None) -> Network:
    torch.manual_seed(0)
    return Network(on_map)


def watching(model: nn.Module, folder: Any, probes: Any = None, **options: Any) -> GradCAMWatch:
    options = {"target_layers": LAYER, "class_names": CLASSES, **options}
    return GradCAMWatch(model, batch() if probes is None else probes, folder, **options)


# What is written


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GradCAMWatch, Network]:
    """A plain loop with a look after each epoch."""
    folder, model = tmp_path_factory.mktemp("plain"), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    step = 0
    with watching(model, folder, target=["predicted", "label"], regions=[[0, 0, 8, 8]] * 4) as watch:
        for epoch in range(3):
            for images, labels in loader():
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
                step += 1
            watch.look(step, epoch)
    return folder, watch, model


def test_panels_and_scalars_stand_at_the_steps_of_the_looks(trained: tuple[Path, GradCAMWatch, Network]) -> None:
    folder, watch, model = trained
    events = Events.read(folder)
    tags = (PANEL, "gradcam/null_gradients", "gradcam/seconds", f"gradcam/gradient_norm/{LAYER}")
    assert [events.steps(tag) for tag in (*tags, f"gradcam/energy_inside/{LAYER}")] == [[3, 6, 9]] * 5
    assert watch.alerts == []
    assert watch.last_result is not None
    expected = compute_cam(model, batch()[0], LAYER)
    assert watch.last_result.cams[LAYER].equal(expected.cams[LAYER])


def test_the_recording_and_the_report_are_those_of_a_run(trained: tuple[Path, GradCAMWatch, Network]) -> None:
    folder, watch, _ = trained
    recording = read_run(folder)
    assert (recording.steps.tolist(), recording.epochs.tolist()) == ([3, 6, 9], [0, 1, 2])
    assert recording.targets == ("predicted", "label")
    assert list(recording.probes.labels) == [0, 1, 2, 0]
    assert watch.last_result is not None
    cams = watch.last_result.cams[LAYER].numpy()
    assert abs(recording.maps[LAYER][-1, 0] - cams).max() <= cams.max() / 255
    assert Path(write_report([str(folder)], str(folder / "report.html"))).stat().st_size > 100_000


def test_a_look_is_that_of_the_callback(tmp_path: Path) -> None:
    """The same weights, images and options: the same pixels."""
    module = Classifier()
    options: dict[str, Any] = {"target": ["predicted", "label"], "class_names": CLASSES}
    callback = GradCAMCallback(f"model.{LAYER}", probes=4, **options)
    run = make_run(tmp_path / "trainer", callback, module).validate(8)
    with watching(module, tmp_path / "loop", target_layers=f"model.{LAYER}", target=["predicted", "label"]) as watch:
        watch.look(0, 0)
    ours, theirs = Events.read(tmp_path / "loop"), run.events
    assert ours.images[f"gradcam/model.{LAYER}"] == theirs.images[f"gradcam/validate/model.{LAYER}"]
    names = {tag.replace("gradcam/validate", "gradcam") for tag in theirs.ours()}
    assert names == ours.ours()


def test_looks_are_counted_where_there_are_no_epochs(tmp_path: Path) -> None:
    with watching(network(), tmp_path) as watch:
        for step in (0, 100, 200):
            watch.look(step)
    recording = read_run(tmp_path)
    assert (recording.steps.tolist(), recording.epochs.tolist()) == ([0, 100, 200], [0, 1, 2])


def test_an_epoch_may_come_again(tmp_path: Path) -> None:
    with watching(network(), tmp_path) as watch:
        for step, epoch in ((1, 5), (2, 5), (3, 0)):
            watch.look(step, epoch)
    assert read_run(tmp_path).epochs.tolist() == [5, 5, 0]


def test_a_summary_writer_of_the_loop_gets_all_and_stays_open(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        with watching(network(), writer) as watch:
            watch.look(1)
        writer.add_scalar("loss", 1.0, 2)
    events = Events.read(tmp_path)
    assert (events.steps(PANEL), events.steps("loss")) == ([1], [2])
    assert len(list(tmp_path.glob("events*"))) == 1


def test_a_folder_may_be_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with watching(network(Tensor.detach), "memory://watched", on_null="ignore") as watch:
        watch.look(1)
    recording = read_run("memory://watched")
    assert recording.steps.tolist() == [1]
    [line] = fsspec.filesystem("memory").cat_file("/watched/gradcam/alerts.jsonl").splitlines()
    assert json.loads(line)["cause"] == "detached"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_lost_where_nobody_closes(tmp_path: Path) -> None:
    program = f"""
        import sys
        import torch
        from torch import nn
        from gradcam_callback import GradCAMWatch
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        watch = GradCAMWatch(model, torch.rand(2, 3, 8, 8), {str(tmp_path)!r})
        watch.look(7)
        print([name for name in sys.modules if name.split(".")[0] in ("lightning", "pytorch_lightning")])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", "Lightning is imported"
    assert Events.read(tmp_path).steps("gradcam/1") == [7]


# Where something is wrong


def test_a_null_is_an_alert_with_its_line(tmp_path: Path) -> None:
    model = network(Tensor.detach)
    with pytest.warns(GradientNullWarning, match="detaches the value"):
        watch = watching(model, tmp_path)
    with watch:
        watch.look(1, 0)
        model.on_map = None
        watch.look(2, 1)
    assert [(str(alert.status), str(alert.cause), alert.step) for alert in watch.alerts] == [
        ("raised", "detached", 0),
        ("cleared", "detached", 2),
    ]
    location = watch.alerts[0].location
    assert location is not None
    assert location.file.endswith("models.py")
    lines = (tmp_path / "gradcam" / "alerts.jsonl").read_text().splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["raised", "cleared"]
    assert read_run(tmp_path).alerts[0]["cause"] == "detached"


def test_on_null_raise_ends_it_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(GradientNullError, match="detach"):
        watching(network(Tensor.detach), tmp_path, on_null="raise")


def test_a_model_that_raises_for_the_probes_goes_on_training(tmp_path: Path) -> None:
    def refuse(maps: Tensor) -> Tensor:
        raise RuntimeError("no probes in here")

    with pytest.warns(UserWarning, match="no probes in here"), watching(network(refuse), tmp_path) as watch:
        watch.look(1)
    assert [str(alert.cause) for alert in watch.alerts] == ["forward_failed"]
    assert watch.last_result is None


def test_a_look_after_the_end_is_an_alert(tmp_path: Path) -> None:
    watch = watching(network(), tmp_path)
    watch.close()
    with pytest.warns(UserWarning, match="the watch is closed"):
        watch.look(1)
    watch.close()


def test_a_disk_that_is_gone_does_not_end_the_loop(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("")
    with pytest.warns(UserWarning, match="no place to write"), watching(network(), file / "folder") as watch:
        watch.look(1)
    assert watch.last_result is not None


def test_fsdp_of_old_has_no_maps(tmp_path: Path) -> None:
    model = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # without a process group
    nn.Module.__init__(model)
    model.inner = network()
    with pytest.warns(UserWarning, match="one flat parameter"), GradCAMWatch(model, batch(), tmp_path) as watch:
        watch.look(1)
    assert [str(alert.cause) for alert in watch.alerts] == ["unsupported_strategy"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"probes": 8}, "There is no validation to take samples from"),
        ({"probes": "images/"}, "expected images"),
        ({"probes": ()}, "expected images"),
        ({"probes": ValidationProbes(4)}, "There is no validation"),
        ({"probes": {"label": torch.zeros(4)}}, "image_key"),
        ({"model": lambda images: images}, "expected a torch.nn.Module, got function"),
        ({"log_dir": 3}, "expected a folder or a torch.utils.tensorboard.SummaryWriter, got int"),
        ({"target_layers": "layer9"}, "layer9"),
        ({"target": 7}, "7"),
        ({"forward": "classify"}, "classify"),
    ],
)
def test_what_is_impossible_is_refused_at_once(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradCAMWatch(**{"model": network(), "probes": batch(), "log_dir": tmp_path, **given})


def test_the_options_are_those_of_the_callback() -> None:
    callback = dict(inspect.signature(GradCAMCallback).parameters)
    watch = dict(inspect.signature(GradCAMWatch).parameters)
    for name in ("probes", "every_n_epochs"):  # the loop says when, and what to look at
        callback.pop(name)
    options = {name: watch.pop(name) for name in list(watch)[3:]}
    assert list(watch) == ["model", "probes", "log_dir"]
    assert list(options) == list(callback)
    for name, option in options.items():
        assert (option.default, option.annotation) == (callback[name].default, callback[name].annotation), name


# Probes


class TwoInputs(nn.Module):
    """Takes an image and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, scan: Tensor, age: Tensor) -> Tensor:
        logits: Tensor = self.network(scan)
        return logits * age[:, None]


def test_probes_of_every_kind(tmp_path: Path) -> None:
    images, labels = batch()
    files = [tmp_path / f"{name}.png" for name in "ab"]
    for number, file in enumerate(files):
        Image.fromarray(np.full((16, 16, 3), 80 * number, np.uint8)).save(file)
    kinds: dict[str, Any] = {
        "images": images,
        "pair": (images, labels),
        "named": default_collate([Named()[index] for index in range(4)]),
        "tensors": TensorProbes(images, labels, names=list("wxyz")),
        "files": ImageProbes(files),
    }
    for name, probes in kinds.items():
        with watching(network(), tmp_path / name, probes) as watch:
            watch.look(0)
        assert watch.probes is not None
        assert watch.alerts == [], name
        if name != "files":
            assert watch.probes.images.equal(images), name
            assert (watch.probes.labels is None) == (name == "images")
    assert watch.probes.names == ("a.png", "b.png")


def test_a_batch_gives_what_forward_asks_for(tmp_path: Path) -> None:
    images, labels = batch()
    model, ages = TwoInputs(), torch.tensor([1.0, 2.0, 3.0, 4.0])
    given = {"scan": images, "age": ages, "label": labels}
    with watching(model, tmp_path, given, target_layers=f"network.{LAYER}", target="label") as watch:
        watch.look(0)
    assert watch.last_result is not None
    expected = compute_cam(network(), images, LAYER, target=labels.tolist()).cams[LAYER] * ages[:, None, None]
    assert (watch.last_result.cams[f"network.{LAYER}"] - expected).norm() <= 1e-5 * expected.norm()


def test_the_probes_are_a_copy(tmp_path: Path) -> None:
    images, labels = batch()
    before = images.clone()
    with watching(network(), tmp_path, (images, labels)) as watch:
        images.zero_()
        watch.look(0)
    assert watch.probes is not None
    assert watch.probes.images.equal(before)


# No trace

Watch = Callable[[int], None]
"""Called with the step, where the loop would look."""


def no_watch(step: int) -> None:
    """The training as it is without."""


def plain_loop(model: nn.Module, watch: Watch, **settings: Any) -> Iterator[State]:
    """Looks with half a step of gradients, in training mode; draws from every generator."""
    surroundings: AbstractContextManager[Any] = settings.get("surroundings", nullcontext())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, (images, labels) in enumerate(loader(32)):
        noise = random.random() + np.random.rand() + torch.rand(())
        F.cross_entropy(model(images + 0.1 * noise), labels).backward()
        with surroundings:
            watch(step)
        yield state(model, optimizer)
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
        yield state(model, optimizer)


def fabric_loop(model: nn.Module, watch: Watch, **settings: Any) -> Iterator[State]:
    fabric: Fabric = settings["fabric"]
    wrapped, optimizer = settings["wrapped"]
    for step, (images, labels) in enumerate(fabric.setup_dataloaders(loader(32))):
        fabric.backward(F.cross_entropy(wrapped(images), labels))
        watch(step)
        yield state(wrapped, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        yield state(wrapped, optimizer)


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    return {
        **dict(switches()),
        **dict(generators_state({})),
        **dict(modules_state(model)),
        **dict(flat(optimizer.state_dict(), "optimizer")),
    }


def seeded() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def moments(states: Iterator[State]) -> dict[str, State]:
    return {str(number): one for number, one in enumerate(states)}


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "in training": nullcontext,
    "under no_grad": torch.no_grad,
    "in inference mode": torch.inference_mode,
    "under autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("on_map", [None, Tensor.detach], ids=["healthy", "detached"])
@pytest.mark.filterwarnings("ignore")
def test_a_plain_loop_leaves_the_same_bits_behind(
    tmp_path: Path, surroundings: str, on_map: Callable[[Tensor], Tensor] | None
) -> None:
    seeded()
    without = moments(plain_loop(network(on_map), no_watch, surroundings=SURROUNDINGS[surroundings]()))
    seeded()
    model = network(on_map)
    given: dict[str, Any] = {"surroundings": SURROUNDINGS[surroundings]()}
    options: dict[str, Any] = {"target": ["predicted", "label"], "faithfulness": {"steps": 2, "percentiles": [50]}}
    generators = dict(generators_state({}))
    with watching(model, tmp_path, **options) as watch:
        assert dict(generators_state({})) == generators
        with_it = moments(plain_loop(model, watch.look, **given))
    assert differences(without, with_it) == []
    assert watch.last_result is not None
    assert bool(watch.alerts) == (on_map is not None)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_fabric_leaves_the_same_bits_behind_and_the_map_is_of_its_precision(tmp_path: Path, precision: Any) -> None:
    def setup() -> tuple[Network, dict[str, Any]]:
        seeded()
        fabric, model = Fabric(accelerator="cpu", devices=1, precision=precision), network()
        wrapped = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
        return model, {"fabric": fabric, "wrapped": wrapped}

    model, given = setup()
    without = moments(fabric_loop(model, no_watch, **given))
    model, given = setup()
    with watching(given["wrapped"][0], tmp_path) as watch:
        with_it = moments(fabric_loop(model, watch.look, **given))
        watch.look(4)
    assert differences(without, with_it) == []
    assert watch.alerts == []
    assert watch.last_result is not None

    images = batch()[0].bfloat16() if precision == "bf16-true" else batch()[0]
    with given["fabric"].autocast():
        expected = compute_cam(model, images, LAYER).cams[LAYER]
    assert watch.last_result.cams[LAYER].equal(expected)
    assert Events.read(tmp_path).steps(PANEL) == [0, 1, 2, 3, 4]


def test_what_a_lightning_module_logs_in_forward_reaches_no_logger_of_fabric(tmp_path: Path) -> None:
    class Logging(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            self.log("size", float(len(images)))
            return super().forward(images)

    logger = CSVLogger(tmp_path)
    fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
    model = fabric.setup(Logging())
    model(batch(2)[0])
    with watching(model, tmp_path, target_layers=f"model.{LAYER}") as watch:
        watch.look(1)
    assert [metrics["size"] for metrics in logger.experiment.metrics] == [2.0]
    assert watch.last_result is not None


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_watched_by_its_own_names(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = network()
    compiled = torch.compile(model, backend="eager")
    with watching(compiled, tmp_path) as watch:  # type: ignore[arg-type]
        compiled(batch()[0])
        watch.look(1)
    assert watch.last_result is not None
    assert list(watch.last_result.cams) == [LAYER]


@pytest.mark.gpu
def test_a_model_may_move_to_another_device(tmp_path: Path) -> None:
    model = network()
    with watching(model, tmp_path) as watch:
        model.cuda()
        watch.look(0)
        model.cpu()
        watch.look(1)
    assert Events.read(tmp_path).steps(PANEL) == [0, 1]
