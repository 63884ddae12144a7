"""Several processes: the probes are shared out, gathered and written once, and nobody waits for ever.

Two real processes run all scenes of `tests/processes.py` one after the other; the tests look at what each of them saw.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Events
from models import Classifier, Network, Spots
from processes import Crops, Padding
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from gradcam_callback import compute_cam, read_run
from gradcam_callback.engine.faithfulness import deletion
from gradcam_callback.errors import BadInputError
from gradcam_callback.execution.processes import PartFailedError, ProcessGroup

LAYER = "model.stage"
PANEL = f"gradcam/{LAYER}"
SCENES = Path(__file__).with_name("processes.py")
SECONDS = 240
"""A run that hangs is ended after this time."""
AT_FIRST = [2, 2, 2]
"""Before the first pass, each process looks at the output of two probes, three times."""


class Stage:
    """Where scenes are played: a folder, and what each process left of each scene."""

    def __init__(self, folder: Path, scenes: list[str]) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
        command = [sys.executable, "-m", "torch.distributed.run", *address, str(SCENES), str(folder), *scenes]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr

    def both(self, scene: str) -> list[dict[str, Any]]:
        return [torch.load(self.folder / scene / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]

    def events(self, scene: str) -> Events:
        return Events.read(self.folder / scene)


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    names = ["", "_no_logger", "_without", "_auto", "_one_probe", "_detached", "_raise", "_forward_fails", "_memory"]
    names += ["_subset", "_stream", "_positions_of_stream", "_lists", "_methods", "_loop", "_loop_without"]
    return Stage(tmp_path_factory.mktemp("ddp"), [f"ddp{name}" for name in names])


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("FSDP2 of this version of torch does not run on a CPU")
    names = ["", "_without", "_auto", "_detached", "_forward_fails", "_methods", "_loop", "_loop_without"]
    return Stage(tmp_path_factory.mktemp("fsdp"), [f"fsdp{name}" for name in names])


def on_one_process(seen: dict[str, Any]) -> torch.Tensor:
    """The maps that the same weights give for the same images in this process."""
    module = Classifier()
    module.load_state_dict(seen["weights"])
    return compute_cam(module, seen["images"], LAYER).cams[LAYER]


def assert_same_weights(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["weights"].keys() == other["weights"].keys()
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name]), name


def assert_relative_error(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert (got - expected).norm() <= 1e-5 * expected.norm()


# DDP


def test_probes_are_shared_out_and_gathered_in_their_order(ddp: Stage) -> None:
    first, second = ddp.both("ddp")

    for seen in (first, second):
        assert seen["images"].equal(torch.stack([Spots()[index][0] for index in range(5)]))
        assert_relative_error(seen["cams"][LAYER], on_one_process(seen))
        assert seen["states"] == ["ok"] * 5
    # A look at what two probes give, a dry run and two passes; between them two training
    # and two validation batches each.
    assert first["seen"] == [*AT_FIRST, 2, *[8] * 4, 2, *[8] * 4, 2]
    assert second["seen"] == [*AT_FIRST, 3, *[8] * 4, 3, *[8] * 4, 3]


def test_everything_is_written_once(ddp: Stage) -> None:
    events = ddp.events("ddp")

    for tag in (PANEL, "gradcam/null_gradients", "gradcam/seconds", f"gradcam/gradient_norm/{LAYER}"):
        assert events.steps(tag) == [3, 6], tag
    assert len(list((ddp.folder / "ddp").glob("events*"))) == 1
    assert [seen["warnings"] for seen in ddp.both("ddp")] == [[], []]
    recording = read_run(ddp.folder / "ddp")
    assert recording.steps.tolist() == [3, 6]
    cams = ddp.both("ddp")[0]["cams"][LAYER]
    assert (torch.tensor(recording.maps[LAYER][-1, 0]) - cams).abs().max() <= cams.max() / 255


@pytest.mark.parametrize("scene", ["ddp", "ddp_no_logger"])
def test_each_look_is_recorded_once_with_the_probes_of_all_processes(ddp: Stage, scene: str) -> None:
    recording = read_run(ddp.folder / scene)

    assert len(list((ddp.folder / scene).rglob("*tfevents*"))) == 1
    assert recording.steps.tolist() == [3, 6]
    assert (recording.notes, len(recording.probe_sets), len(recording.probes)) == ((), 1, 5)
    for seen in ddp.both(scene):
        cams = seen["cams"][LAYER].numpy()
        assert abs(recording.maps[LAYER][-1, 0] - cams).max() <= cams.max() / 255
        assert recording.states[LAYER][-1, 0].tolist() == seen["states"]
        assert recording.classes[-1, 0].tolist() == seen["targets"].tolist()


def test_all_processes_have_the_same_metrics(ddp: Stage) -> None:
    first, second = (seen["metrics"] for seen in ddp.both("ddp"))
    ours = {name for name in first if name.startswith("gradcam/")}

    assert {"gradcam/null_gradients", f"gradcam/gradient_norm/{LAYER}", "gradcam/seconds"} <= ours
    assert {name: first[name] for name in ours} == {name: second[name] for name in ours}


@pytest.mark.parametrize("scene", ["ddp", "ddp_forward_fails", "ddp_memory", "ddp_one_probe", "ddp_auto"])
def test_ddp_training_leaves_the_same_bits_behind(ddp: Stage, scene: str) -> None:
    for seen, without in zip(ddp.both(scene), ddp.both("ddp_without"), strict=True):
        assert_same_weights(seen, without)


def test_auto_chooses_the_same_layer_everywhere(ddp: Stage) -> None:
    for seen in ddp.both("ddp_auto"):
        assert_relative_error(seen["cams"][LAYER], on_one_process(seen))


def test_fewer_probes_than_processes(ddp: Stage) -> None:
    first, second = ddp.both("ddp_one_probe")

    for seen in (first, second):
        assert_relative_error(seen["cams"][LAYER], on_one_process(seen))
    assert first["seen"] == [1, *[8] * 8]  # it looks at what the probe gives, and then it has nothing to do
    assert ddp.events("ddp_one_probe").steps(PANEL) == [3, 6]


def test_a_null_is_diagnosed_once_bridged_everywhere_and_said_once(ddp: Stage) -> None:
    first, second = ddp.both("ddp_detached")

    for seen in (first, second):
        assert seen["alerts"] == [("raised", LAYER, "detached", 0)]
        assert "for all 5 probes" in seen["messages"][0]
        assert seen["states"] == ["none"] * 5
        assert seen["cams"][LAYER].isfinite().all()  # drawn across the cut
    assert first["seen"].count(5) > 0 == second["seen"].count(5)  # the diagnosis takes all probes
    assert (len(first["warnings"]), len(second["warnings"])) == (1, 0)
    events = ddp.events("ddp_detached")
    assert len(events.texts["gradcam/alerts"]) == 1
    assert events.values("gradcam/null_gradients") == [5, 5]


def test_raise_ends_all_processes(ddp: Stage) -> None:
    for seen in ddp.both("ddp_raise"):
        assert "detaches the value" in seen["error"]
        assert seen["seen"].count(8) == 0  # before the first training step


def test_one_process_that_fails_is_an_alert_and_nobody_waits(ddp: Stage) -> None:
    for seen in ddp.both("ddp_forward_fails"):
        assert seen["alerts"] == [("raised", "forward", "forward_failed", 0)]
        assert "processes.py" in seen["messages"][0]
        assert "no space in here" in seen["messages"][0]
        assert seen["seen"].count(8) == 8  # the training went on to its end
        assert seen["metrics"]["gradcam/null_gradients"] == 5
    assert PANEL not in ddp.events("ddp_forward_fails").images


def test_one_process_that_is_short_of_memory_takes_portions(ddp: Stage) -> None:
    first, second = ddp.both("ddp_memory")

    for seen in (first, second):
        assert seen["alerts"] == [("raised", "memory", "short_of_memory", 0)]
        assert "2 at a time" in seen["messages"][0]
        assert_relative_error(seen["cams"][LAYER], on_one_process(seen))
    assert second["seen"] == [*AT_FIRST, 2, 2, *[8] * 4, 2, 2, *[8] * 4, 2, 2]  # never again four at once
    assert ddp.events("ddp_memory").steps(PANEL) == [3, 6]


def test_a_split_by_a_sampler_holds_for_the_probes(ddp: Stage) -> None:
    """Its order is random, so the first four are any four of its part, the same in each process."""
    first, second = (seen["images"] for seen in ddp.both("ddp_subset"))
    part = [Spots()[index][0] for index in range(12, 24)]

    assert first.equal(second)
    assert len(first) == 4
    assert all(any(image.equal(spot) for spot in part) for image in first)


def test_a_stream_that_each_process_reads_otherwise_gives_all_the_same_probes(ddp: Stage) -> None:
    for seen in ddp.both("ddp_stream"):
        assert seen["images"].equal(torch.stack([Spots()[index][0] for index in range(5)]))
        assert_relative_error(seen["cams"][LAYER], on_one_process(seen))


def test_positions_of_a_stream_are_those_of_the_first_process(ddp: Stage) -> None:
    for seen in ddp.both("ddp_positions_of_stream"):
        assert seen["images"].equal(Spots()[3][0].unsqueeze(0))
        assert seen["alerts"] == []


def test_images_of_a_list_are_shared_out_with_their_sizes(ddp: Stage) -> None:
    """The first process has the first two, and the second the others, which it pads to a lower height."""
    images = [Crops(16)[index][0] for index in range(5)]

    for seen in ddp.both("ddp_lists"):
        assert seen["alerts"] == []
        assert seen["sizes"] == tuple(tuple(image.shape[1:]) for image in images)
        module = Padding()
        module.load_state_dict(seen["weights"])
        for share in (slice(0, 2), slice(2, 5)):
            expected = compute_cam(module, images[share], LAYER)
            pairs = zip(seen["heatmaps"][LAYER][share], expected.heatmaps()[LAYER], strict=True)
            for (got, alone), image in zip(pairs, images[share], strict=True):
                height = image.shape[1]
                assert_relative_error(got[:height], alone[:height])
                assert not got[height:].any()
    assert ddp.events("ddp_lists").steps(PANEL) == [3, 6]


# FSDP2


@pytest.mark.parametrize("scene", ["fsdp", "fsdp_auto"])
def test_maps_of_a_sharded_model_are_those_of_one_process(fsdp: Stage, scene: str) -> None:
    for seen in fsdp.both(scene):
        assert_relative_error(seen["cams"][LAYER], on_one_process(seen))
    assert fsdp.events(scene).steps(PANEL) == [3, 6]


@pytest.mark.parametrize("scene", ["fsdp", "fsdp_auto", "fsdp_forward_fails"])
def test_fsdp_training_leaves_the_same_bits_behind(fsdp: Stage, scene: str) -> None:
    if scene == "fsdp_forward_fails" and not hasattr(FSDPModule, "reset_iter_state"):
        pytest.skip("this version of torch cannot have FSDP2 begin anew")
    for seen, without in zip(fsdp.both(scene), fsdp.both("fsdp_without"), strict=True):
        assert_same_weights(seen, without)
        assert seen["seen"].count(8) >= 8


def test_a_null_of_a_sharded_model_is_diagnosed(fsdp: Stage) -> None:
    for seen in fsdp.both("fsdp_detached"):
        assert seen["alerts"] == [("raised", LAYER, "detached", 0)]
        assert seen["states"] == ["none"] * 5
        assert seen["cams"][LAYER].isfinite().all()


def test_a_sharded_model_that_raises_goes_on_training(fsdp: Stage) -> None:
    for seen in fsdp.both("fsdp_forward_fails"):
        assert seen["alerts"] == [("raised", "forward", "forward_failed", 0)]


# Without a Trainer


def test_in_a_loop_under_ddp_the_first_process_looks_alone(ddp: Stage) -> None:
    first, second = ddp.both("ddp_loop")
    assert_loop_is_explained(first)
    assert second["cams"] is None
    assert (first["seen"].count(5), second["seen"]) == (4, [8, 8, 8])  # a dry run and three looks, of all probes
    assert_written_once(ddp, "ddp_loop")


def test_in_a_loop_a_sharded_model_is_looked_at_by_all(fsdp: Stage) -> None:
    for seen in fsdp.both("fsdp_loop"):
        assert_loop_is_explained(seen)
    assert_written_once(fsdp, "fsdp_loop")


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_loop_leaves_the_same_weights_behind(request: pytest.FixtureRequest, kind: str) -> None:
    stage: Stage = request.getfixturevalue(kind)
    for seen, without in zip(stage.both(f"{kind}_loop"), stage.both(f"{kind}_loop_without"), strict=True):
        assert_same_weights(seen, without)


def assert_loop_is_explained(seen: dict[str, Any]) -> None:
    network = Network()
    network.load_state_dict(seen["weights"])
    assert_relative_error(seen["cams"]["stage"], compute_cam(network, seen["images"], "stage").cams["stage"])


def assert_written_once(stage: Stage, scene: str) -> None:
    assert len(list((stage.folder / scene).glob("events*"))) == 1
    assert stage.events(scene).steps("gradcam/stage") == [0, 1, 2]


# The processes by themselves


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 16])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_neighbours_and_cover_everything_once(count: int, size: int) -> None:
    shares = [list(range(count))[ProcessGroup(rank, size).share(count)] for rank in range(size)]

    assert [sample for share in shares for sample in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_of_a_sharded_model_everyone_takes_all() -> None:
    assert list(range(5))[ProcessGroup(1, 2, sharded=True).share(5)] == [0, 1, 2, 3, 4]


def test_alone_there_is_no_collective_call() -> None:
    alone = ProcessGroup()
    assert (alone.gather(lambda: 1), alone.from_rank_zero(lambda: 2), alone.run_consistently(lambda: 3)) == ([1], 2, 3)
    with pytest.raises(KeyError):
        alone.gather(lambda: {}[0])


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> list[ProcessGroup]:
    """Two ranks in two threads of this process, with collective calls that meet in memory."""
    meeting, board = threading.Barrier(2, timeout=10), [None, None]

    def all_gather_object(outcomes: list[Any], mine: Any) -> None:
        board[int(threading.current_thread().name)] = mine
        meeting.wait()
        outcomes[:] = board
        meeting.wait()

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    return [ProcessGroup(0, 2), ProcessGroup(1, 2)]


def in_threads(ranks: list[ProcessGroup], job: Any) -> list[BaseException | list[Any]]:
    results: list[Any] = [None, None]

    def work(rank: int) -> None:
        try:
            results[rank] = ranks[rank].gather(lambda: job(rank))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,), name=str(rank)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_everyone_gets_all_results_by_rank(pair: list[ProcessGroup]) -> None:
    assert in_threads(pair, lambda rank: f"of {rank}") == [["of 0", "of 1"]] * 2


@pytest.mark.parametrize("value", [lambda: threading.Lock(), lambda: {}["key"]], ids=["cannot be sent", "raises"])
def test_a_part_that_fails_is_told_to_all(pair: list[ProcessGroup], value: Any) -> None:
    errors = in_threads(pair, lambda rank: value() if rank == 1 else 0)

    assert [type(error) for error in errors] == [PartFailedError] * 2
    assert str(errors[0]) == str(errors[1])
    assert str(errors[0]).startswith("on rank 1 of 2, ")


def test_bad_input_stays_bad_input(pair: list[ProcessGroup]) -> None:
    def job(rank: int) -> None:
        raise BadInputError(f"given: {rank}")

    errors = in_threads(pair, job)
    assert [(type(error), str(error)) for error in errors] == [(BadInputError, "given: 0")] * 2


# What runs the model more often than once


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_methods_and_measures_that_run_the_model_again(strategy: str, request: pytest.FixtureRequest) -> None:
    stage = request.getfixturevalue(strategy)
    recording = read_run(stage.folder / f"{strategy}_methods")
    for rank, seen in enumerate(stage.both(f"{strategy}_methods")):
        module = Classifier()
        module.load_state_dict(seen["weights"])
        expected = compute_cam(module, seen["images"], LAYER, method="scorecam", target=seen["targets"])
        assert_relative_error(seen["cams"][LAYER], expected.cams[LAYER])
        assert [cause for _, _, cause, _ in seen["alerts"] if cause != "looks_elsewhere"] == []
        if strategy == "fsdp" and rank == 1:
            continue  # its batch normalisation has statistics of its own, and what the first one has seen is recorded
        heatmaps, classes = expected.heatmaps()[LAYER], seen["targets"]

        def score(images: Tensor, rows: Tensor, module: Classifier = module, classes: Tensor = classes) -> Tensor:
            return module.eval()(images).softmax(1).gather(1, classes[rows, None])[:, 0]

        areas = deletion(score, seen["images"], heatmaps, steps=3)
        torch.testing.assert_close(torch.tensor(recording.measures["deletion"][LAYER][-1, 0]), areas)
        for name in ("deletion", "energy_inside", "focus") if strategy == "ddp" else ():
            mean = seen["metrics"][f"gradcam/{name}/{LAYER}"]
            assert float(mean) == pytest.approx(float(recording.measures[name][LAYER][-1, 0].mean()), rel=1e-4)
