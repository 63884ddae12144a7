"""When memory runs out, the probes are taken in portions that fit, and an alert says so."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Run
from models import Classifier
from torch import Tensor

from gradcam_callback import GradCAMCallback, compute_cam
from gradcam_callback.engine.memory import is_out_of_memory

LAYER = "model.stage"


TRIED: list[int] = []
"""How many probes were given to the last network, whichever copy of it ran."""
AT_FIRST = [2, 2, 2]
"""Before the first pass, the output of two probes is looked at, three times."""


class Tight(Classifier):
    """Has room for so many probes; batches of the training and the validation have eight."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        TRIED.clear()

    def forward(self, images: Tensor) -> Tensor:
        if len(images) != 8:
            TRIED.append(len(images))
            if len(images) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(images)


def test_smaller_portions_are_taken_from_then_on_and_an_alert_says_so(run: Callable[..., Run]) -> None:
    module = Tight(room=2)
    fit = run(GradCAMCallback(LAYER, probes=7), module).fit(val=16)

    assert [*AT_FIRST, 7, 4, 2, 2, 2, 1, *[2, 2, 2, 1] * 3] == TRIED  # a dry run and three passes
    assert fit.alerts == [("raised", "memory", "short_of_memory", 0)]
    [warning] = fit.our_warnings()
    assert "they are taken 2 at a time from now on" in warning
    assert fit.events.values("gradcam/null_gradients") == [0, 0, 0]
    assert fit.callback.last_result is not None
    assert fit.callback.probes is not None
    module.room = 8
    expected = compute_cam(module, fit.callback.probes.images, LAYER)
    torch.testing.assert_close(fit.callback.last_result.cams[LAYER], expected.cams[LAYER], rtol=1e-5, atol=1e-7)


def test_another_training_tries_all_at_once_again(run: Callable[..., Run]) -> None:
    callback = GradCAMCallback(LAYER, probes=7)
    run(callback, Tight(room=2), max_epochs=1, folder="first").fit(val=16)
    module = Tight(room=7)
    run(callback, module, max_epochs=1, folder="second").fit(val=16)

    assert [*AT_FIRST, 7, 7] == TRIED


def test_no_room_for_a_single_probe_is_an_alert_and_the_training_goes_on(run: Callable[..., Run]) -> None:
    fit = run(GradCAMCallback(LAYER, probes=4), Tight(room=0)).fit(val=16)

    assert fit.trainer.current_epoch == 3
    assert [cause for _, _, cause, _ in fit.alerts] == ["forward_failed"]
    assert "OutOfMemoryError" in fit.callback.alerts[0].message
    assert fit.events.values("gradcam/null_gradients") == [4, 4, 4]


def test_labels_stay_with_their_probes(run: Callable[..., Run]) -> None:
    fit = run(GradCAMCallback(LAYER, probes=7, target=["label", 1]), Tight(room=3), max_epochs=1).fit(val=16)

    assert fit.callback.last_result is not None
    assert fit.callback.last_result.targets.tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the memory of a process")
def test_memory_that_really_runs_out(tmp_path: Path) -> None:
    """The process may take 3 GiB more than it has; a probe takes 1 GiB."""
    script = """
        import resource, sys, torch
        from lightning.pytorch import Trainer
        from lightning.pytorch.loggers import TensorBoardLogger
        from models import Classifier, loader
        from gradcam_callback import (GradCAMCallback)

        class Hungry(Classifier):
            def forward(self, images):
                room = torch.empty(len(images) if len(images) < 8 else 0, 1 << 30, dtype=torch.uint8)
                return super().forward(images) + room.numel() * 0

        callback = GradCAMCallback("model.stage", probes=7)
        trainer = Trainer(logger=TensorBoardLogger(sys.argv[1]), callbacks=[callback], max_epochs=1, accelerator="cpu",
                          enable_progress_bar=False, enable_checkpointing=False)
        in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 3 * 2**30, -1))
        trainer.fit(Hungry(), loader(24), loader(16))
        print([str(alert.cause) for alert in callback.alerts], callback.last_result.health["model.stage"].state)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # CUDA would want more room than is left
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)

    assert done.returncode == 0, done.stderr
    [causes] = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert causes.startswith("['short_of_memory'] ")
    assert causes.count("<GradientState.OK: 'ok'>") == 7


def test_a_null_is_diagnosed_in_a_portion_and_bridged_in_portions(run: Callable[..., Run]) -> None:
    module = Tight(room=2)
    module.model.on_map = torch.Tensor.detach
    fit = run(GradCAMCallback(LAYER, probes=5), module).fit(val=16)

    assert {subject: cause for _, subject, cause, _ in fit.alerts} == {"memory": "short_of_memory", LAYER: "detached"}
    [null] = [alert for alert in fit.callback.alerts if alert.layer == LAYER]
    assert null.probes == (0, 1, 2, 3, 4)
    assert null.message.endswith("Memory is short, so this was found out at probes 0, 1 of 5.")
    assert fit.callback.last_result is not None
    assert fit.callback.last_result.health[LAYER].bridged == (True,) * 5
    assert fit.callback.last_result.cams[LAYER].isfinite().all()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:81] DefaultCPUAllocator: not enough memory: 8 bytes"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_running_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
