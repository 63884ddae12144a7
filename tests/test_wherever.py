"""The same maps wherever the model runs: in any precision, compiled, checkpointed, in each entry point, on a GPU."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Run, make_run
from lightning.pytorch import LightningModule
from models import Classifier, Network, Spots, detached, loader
from reference import reference_cam, relative_error
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from gradcam_callback import CAMResult, GradCAMCallback, GradientState, compute_cam, read_run
from gradcam_callback.causes import CallbackIssue
from gradcam_callback.engine.methods import METHODS
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.execution.probe_pass import ProbePass
from gradcam_callback.probes.probe_set import ProbeSet
from gradcam_callback.reporting import panels

MakeRun = Callable[..., Run]

LAYER = "model.stage"
LAYERS = ["model.norm", LAYER]
# A rounding of bfloat16 is 2^-9, and four layers each way add up; of float16 it is 2^-12.
COARSE = {torch.bfloat16: 0.05, torch.float16: 0.01}


def cb(target_layers: Any = tuple(LAYERS), **options: Any) -> GradCAMCallback:
    return GradCAMCallback(target_layers, probes=4, **options)


def plain_twin(module: nn.Module) -> Network:
    """The network by itself, with the weights of a trained module, neither compiled nor checkpointed."""
    twin = Network()
    weights = {name.replace("_orig_mod.", "").removeprefix("model."): t for name, t in module.state_dict().items()}
    twin.load_state_dict({name: tensor.float().cpu() for name, tensor in weights.items()})
    return twin.eval()


def error(result: CAMResult, layer: str, network: nn.Module, images: Tensor) -> float:
    """How far a map is from the reference."""
    name = layer.removeprefix("model.")
    expected = reference_cam(network, images, name, target=result.targets.tolist())
    assert expected.amax() > 0
    return float(relative_error(result.cams[layer].cpu(), expected.cpu()).max())


def check(run: Run, network: nn.Module | None = None, bound: float = 1e-5) -> None:
    """The maps of the last pass are those of the network, whose weights have not changed since."""
    result, probes = run.callback.last_result, run.callback.probes
    assert result is not None
    assert probes is not None
    assert run.alerts == []
    twin = plain_twin(run.module) if network is None else network
    images = probes.images.float().cpu() if network is None else probes.images
    for layer, maps in result.cams.items():
        assert maps.dtype == torch.float32
        assert set(result.health[layer].state) == {GradientState.OK}
        assert error(result, layer, twin, images) <= bound, layer


# Precision


SEEN: dict[str, set[tuple[Any, ...]]] = {}
NOW = ["probes"]


def note(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    """A hook; what it writes to is global, and shared with a replica."""
    kind = args[0].device.type
    mixed = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), torch.get_default_dtype()
    SEEN[NOW[0]].add((args[0].dtype, output.dtype, *mixed))


class Watching(Classifier):
    """Notes in which types and modes its network runs, in validation and elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        SEEN.update({"validation": set(), "training": set(), "probes": set()})
        self.model.stage.register_forward_hook(note)

    def now(self, name: str) -> None:
        NOW[0] = name

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.now("training")
        try:
            return super().training_step(batch, batch_idx)
        finally:
            self.now("probes")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.now("validation")
        try:
            super().validation_step(batch, batch_idx, dataloader_idx)
        finally:
            self.now("probes")


PRECISIONS = {
    "32-true": torch.float32,
    "64-true": torch.float64,
    "bf16-true": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
    "16-true": torch.float16,
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_probes_go_through_the_forward_as_validation_does(run: MakeRun, precision: str) -> None:
    run(cb(), Watching(), precision=precision, max_epochs=1).fit()

    seen = SEEN
    assert seen["probes"] == seen["validation"]
    [(_, made, mixed, *_)] = seen["probes"]
    assert made == PRECISIONS[precision]
    assert mixed == precision.endswith("mixed")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_maps_in_every_precision(run: MakeRun, precision: str) -> None:
    """Against the network as it runs, to 1e-5; against the same weights in float32, to what its type can hold."""
    fit = run(cb(), precision=precision, max_epochs=1).fit()

    with fit.trainer.precision_plugin.forward_context():
        check(fit, fit.module.model)
    check(fit, bound=COARSE.get(PRECISIONS[precision], 1e-5))


def test_half_precision_mixed_is_not_for_the_cpu_and_the_run_goes_on_in_bfloat16(run: MakeRun) -> None:
    fit = run(cb(), Watching(), precision="16-mixed", max_epochs=1).fit()

    assert fit.trainer.precision == "bf16-mixed"
    assert {made for _, made, *_ in SEEN["probes"]} == {torch.bfloat16}
    check(fit, bound=COARSE[torch.bfloat16])


def test_maps_under_autocast_to_half_precision() -> None:
    images = torch.stack([Spots()[index][0] for index in range(4)])
    module = Classifier()
    with torch.autocast("cpu", torch.float16):
        result = compute_cam(module, images, LAYERS)
        exact = {layer: error(result, layer, module.model, images) for layer in LAYERS}
    assert max(exact.values()) <= 1e-5
    assert max(error(result, layer, module.model, images) for layer in LAYERS) <= COARSE[torch.float16]
    assert {maps.dtype for maps in result.cams.values()} == {torch.float32}


# torch.compile


class Terse(Classifier):
    """Logs a single metric, because the compiler goes into `log` too, and takes its time."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self(images), labels))


def whole(backend: Any) -> LightningModule:
    return torch.compile(Terse(), backend=backend)


def child(backend: Any) -> LightningModule:
    module = Terse()
    module.model = torch.compile(module.model, backend=backend)
    return module


def child_in_place(backend: Any) -> LightningModule:
    module = Terse()
    module.model.compile(backend=backend)
    return module


def grandchild(backend: Any) -> LightningModule:
    """The layer itself is what is compiled."""
    module = Terse()
    module.model.stage = torch.compile(module.model.stage, backend=backend)
    return module


Build = Callable[[Any], LightningModule]


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing compiled before, and nothing afterwards."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_run(folder: Path, build: Build, backend: str, watched: bool) -> tuple[Run, Counter[str]]:
    """Three epochs of training, and the graphs that were compiled on the way: of the network, and others."""
    graphs: Counter[str] = Counter()

    def counting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs["network" if "conv2d" in graph.code else "other"] += 1
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    module = build(counting)
    made = make_run(folder, cb(), module)
    made.module = getattr(module, "_orig_mod", module)
    if not watched:
        made.trainer.callbacks.remove(made.callback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.trainer.fit(module, loader(24), loader(16))
    return made, graphs


def check_compiled(tmp_path: Path, build: Build, backend: str) -> None:
    watched, graphs = compiled_run(tmp_path / "watched", build, backend, watched=True)
    check(watched)
    alone, graphs_alone = compiled_run(tmp_path / "alone", build, backend, watched=False)
    assert graphs["network"] == graphs_alone["network"] > 0
    if build is not whole:  # of a compiled step, Lightning's `log` is a part, and depends on how many metrics there are
        assert graphs == graphs_alone
    for name, weights in alone.module.state_dict().items():
        assert torch.equal(weights, watched.module.state_dict()[name]), name


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("build", "backend"),
    [
        pytest.param(whole, "eager", marks=pytest.mark.slow),
        (child, "aot_eager"),
        (child_in_place, "eager"),
        (grandchild, "aot_eager"),
    ],
)
def test_compiled_models_have_the_maps_of_eager_ones_and_are_not_compiled_again(
    tmp_path: Path, build: Build, backend: str
) -> None:
    check_compiled(tmp_path, build, backend)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("build", [whole, child, child_in_place, grandchild])
def test_models_compiled_as_by_default(tmp_path: Path, build: Build) -> None:
    check_compiled(tmp_path, build, "inductor")


# Checkpointing


class Checkpointed(Network):
    """`stage` is in a checkpointed block, `norm` before it, and `last` behind it."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.last = nn.Conv2d(6, 6, 3, padding=1)
        self.reentrant = reentrant

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.norm(self.stem(images)), inplace=True)
        if self.reentrant is None:
            maps = self.block(maps)
        else:
            maps = checkpoint(self.block, maps, use_reentrant=self.reentrant)
        logits: Tensor = self.fc(self.drop(F.relu(self.last(maps)).mean((2, 3))))
        return logits

    def block(self, maps: Tensor) -> Tensor:
        return F.relu(self.stage(maps), inplace=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_training_leaves_the_same_bits_behind(run: MakeRun, reentrant: bool) -> None:
    runs = []
    for folder in ("watched", "alone"):
        torch.manual_seed(0)
        runs.append(run(cb([LAYER, "model.last"]), Classifier(Checkpointed(reentrant)), folder=folder))
        if folder == "alone":
            runs[1].trainer.callbacks.remove(runs[1].callback)
        runs[-1].fit()

    watched, alone = (made.module.state_dict() for made in runs)
    for name, weights in alone.items():
        assert torch.equal(weights, watched[name]), name


# Entry points and copies


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("entry", ["fit", "validate", "test"])
def test_maps_in_every_entry_point(run: MakeRun, entry: str, inference: bool) -> None:
    made = run(cb(), max_epochs=1, inference_mode=inference)
    check(getattr(made, entry)())


def test_maps_after_a_second_fit(run: MakeRun) -> None:
    made = run(cb(), max_epochs=1).fit()
    before = {name: weights.clone() for name, weights in made.module.state_dict().items()}
    made.trainer.fit_loop.max_epochs = 2
    check(made.fit())
    assert not torch.equal(made.module.state_dict()["model.stage.weight"], before["model.stage.weight"])


@pytest.mark.parametrize("again", [lambda c: c, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_callback_that_goes_on_to_another_model_shows_that_one(run: MakeRun, again: Callable[..., Any]) -> None:
    first = run(cb(), max_epochs=1, folder="first").fit()
    other = Classifier()
    torch.nn.init.normal_(other.model.stage.weight)
    check(run(again(first.callback), other, max_epochs=1, folder="second").validate())


# On the way to the host


class Leaving(TorchFunctionMode):
    """Notes each call that waits for the device. What `cpu` returned, and what is made of it, is on the host."""

    WAITING = ("cpu", "tolist", "item", "numpy", "nonzero", "equal", "allclose", "__bool__", "__float__", "__int__")

    def __init__(self, host: list[Tensor]) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.host = list(host)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        given = [value for value in args if isinstance(value, Tensor)]
        on_host = any(tensor is known for tensor in given for known in self.host)
        if name in self.WAITING and not on_host:
            self.calls.append(name)
        result = func(*args, **(kwargs or {}))
        if name == "cpu" or on_host:
            made = result if isinstance(result, (tuple, list)) else [result]
            self.host += [tensor for tensor in made if isinstance(tensor, Tensor)]
        return result


def one_pass(probe_pass: ProbePass, module: nn.Module, probes: ProbeSet, wanted: list[Any]) -> None:
    renderer = panels.PanelRenderer(probes, panels.PanelStyle("turbo", 0.5, False, None, None, None))
    seen = probe_pass.run(module, probes.images, wanted, lambda results: renderer.render(results.by_target))
    renderer.panels(seen.rendered, seen.results, [str(target) for target in wanted], "epoch 0")


def probe_set(device: str = "cpu") -> ProbeSet:
    images = torch.stack([Spots()[index][0] for index in range(4)]).to(device)
    return ProbeSet(images, torch.arange(4) % 3, tuple("abcd"), None, None, None, None, "")


def test_a_pass_brings_verdicts_and_pictures_to_the_host_in_one_piece() -> None:
    probes = probe_set()
    assert probes.labels is not None
    module, probe_pass = Classifier().eval(), ProbePass(CAMRequest.of(LAYERS))
    probe_pass.resolve(module)
    one_pass(probe_pass, module, probes, ["predicted", "predicted"])  # looks at what the model returns, once
    with Leaving([probes.labels]) as leaving:
        one_pass(probe_pass, module, probes, ["predicted", "predicted"])
    assert leaving.calls == ["cpu"]


def test_maps_across_a_cut_come_to_the_host_with_their_pictures() -> None:
    """The verdicts had to be known before the maps were drawn."""
    probes = probe_set()
    module, probe_pass = detached().eval(), ProbePass(CAMRequest.of(LAYER))
    probe_pass.resolve(module)
    one_pass(probe_pass, module, probes, ["predicted"])  # the reason is known from then on
    assert probes.labels is not None
    with Leaving([probes.labels]) as leaving:
        one_pass(probe_pass, module, probes, ["predicted"])
    assert leaving.calls == ["cpu", "cpu"]


# On a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def on_gpu(folder: Path, callback: GradCAMCallback, module: LightningModule | None = None, **settings: Any) -> Run:
    return make_run(folder, callback, module, accelerator="gpu", devices=1, **{"max_epochs": 1, **settings}).fit()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"])
def test_maps_on_a_gpu(tmp_path: Path, precision: str) -> None:
    """Without TF32, whose ten bits are a choice of the user's; the order of sums differs from that of the CPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        fit = on_gpu(tmp_path, cb(), Watching(), precision=precision)
        seen = SEEN
        assert seen["probes"] == seen["validation"]
        [(_, made, *_)] = seen["probes"]
        check(fit, bound=0.05 if made in COARSE else 1e-4)
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.gpu
@needs_gpu
def test_maps_stay_on_the_gpu(tmp_path: Path) -> None:
    fit = on_gpu(tmp_path, cb())
    assert fit.callback.probes is not None
    assert fit.callback.last_result is not None
    assert fit.callback.probes.images.is_cuda
    for tensor in (*fit.callback.last_result.cams.values(), fit.callback.last_result.probabilities):
        assert tensor.is_cuda


@pytest.mark.gpu
@needs_gpu
def test_a_pass_on_a_gpu_waits_for_it_once() -> None:
    """In float16 it would be once more: for whether a gradient overflowed."""
    from torch.profiler import ProfilerActivity, profile

    probes = probe_set("cuda")
    module, probe_pass = Classifier().eval().cuda(), ProbePass(CAMRequest.of(LAYERS))
    probe_pass.resolve(module)
    one_pass(probe_pass, module, probes, ["predicted", "predicted"])  # the first one sets up what it needs
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        one_pass(probe_pass, module, probes, ["predicted", "predicted"])
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert sum(count for name, count in counts.items() if name.startswith("Memcpy DtoH")) == 1
    # The profiler itself waits once, when it ends.
    assert counts.get("cudaDeviceSynchronize", 0) <= 1
    assert counts.get("cudaStreamSynchronize", 0) <= 1


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("smooth_gradcam", "gradient_rollout")])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_method_on_a_gpu(tmp_path: Path, method: str, precision: str) -> None:
    """The noise of smooth maps is another on each device."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        fit = on_gpu(tmp_path, GradCAMCallback(LAYERS, probes=4, method=method), precision=precision)
        result, probes = fit.callback.last_result, fit.callback.probes
        assert result is not None
        assert probes is not None
        model = copy.deepcopy(fit.module).cpu()
        expected = compute_cam(model, probes.images.float().cpu(), LAYERS, method=method, target=result.targets.cpu())
        for layer, cam in result.cams.items():
            assert cam.is_cuda
            bound = 1e-3 if precision == "32-true" else 0.2
            assert relative_error(cam.cpu(), expected.cams[layer].double()).max() <= bound, layer
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.gpu
@needs_gpu
def test_regions_and_measures_on_a_gpu(tmp_path: Path) -> None:
    boxes = [[0, 0, 8, 8]] * 4
    fit = on_gpu(tmp_path, GradCAMCallback(LAYERS, probes=4, regions=boxes), max_epochs=2)
    measures = read_run(tmp_path).measures
    assert set(measures) == {"drift", "focus", "border_energy", "energy_inside", "pointing_game"}
    assert {alert.cause for alert in fit.callback.alerts} <= {CallbackIssue.LOOKS_ELSEWHERE}
