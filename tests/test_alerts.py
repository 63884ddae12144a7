"""What is wrong is said once, again when it changes, and once more when it is over; in words that help."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from models import STEPS, UNPICKLE, Classifier, Faulty, Network, Spots, ZeroHead, detached
from torch import Tensor
from torch.utils.data import DataLoader

from gradcam_callback import Cause, GradCAMCallback, GradientNullError, GradientNullWarning, TensorProbes
from gradcam_callback.causes import CallbackIssue, meaning, remedy
from gradcam_callback.reporting.alerts import Alert, AlertTracker, Finding, Status, short_path
from gradcam_callback.reporting.findings import find_nulls, hidden_channels, probes_missing, weights_modified
from gradcam_callback.reporting.rendering import tiles
from gradcam_callback.results import CAMResult, Diagnosis, GradientState, LayerHealth, SourceLocation

MakeRun = Callable[..., Run]

LAYER = "model.stage"
OK, NONE, ZERO, NON_FINITE = GradientState.OK, GradientState.NONE, GradientState.ZERO, GradientState.NON_FINITE


def finding(
    subject: str = LAYER, cause: Any = Cause.ZERO_GRADIENT, probes: tuple[int, ...] = (0,), **more: Any
) -> Finding:
    return Finding(subject, cause, probes, **({"targets": ("predicted",), "message": "m", "remedy": "r"} | more))


def result(states: dict[str, tuple[GradientState, ...]], cause: Cause | None = None, detail: str = "") -> CAMResult:
    """A result with these verdicts; the rest does not matter here."""
    health = {
        layer: LayerHealth(torch.ones(len(state)), state, (False,) * len(state), cause, detail)
        for layer, state in states.items()
    }
    count = len(next(iter(states.values())))
    zeros = torch.zeros(count, dtype=torch.long)
    maps = {layer: torch.zeros(count, 1, 1) for layer in states}
    return CAMResult(maps, zeros, zeros.float(), zeros, torch.ones(count, 1), health, (4, 4))


# The tracker


def update(tracker: AlertTracker, *findings: Finding, epoch: int = 0) -> list[tuple[str, str, tuple[int, ...]]]:
    new = tracker.update([LAYER, "other"], findings, step=10 * epoch, epoch=epoch)
    return [(str(alert.status), alert.finding.subject, alert.probes) for alert in new]


def test_a_failure_to_write_is_the_same_one_for_the_next_file_and_the_next_connection() -> None:
    texts = [
        "to MLflow: OSError: /images/step+3+af09.png is not there.",
        "to MLflow: OSError: /images/step+6+77be.png is not there.",
        "to MLflow: OSError: <connection at 0x7f01> was refused.",
    ]
    tracker = AlertTracker()
    statuses = [
        [status for status, *_ in update(tracker, finding("writing", CallbackIssue.WRITING_FAILED, (), message=text))]
        for text in texts
    ]
    assert statuses == [["raised"], [], ["changed"]]


def test_raised_once_then_changed_then_cleared() -> None:
    tracker = AlertTracker()

    assert update(tracker) == []
    assert update(tracker, finding()) == [("raised", LAYER, (0,))]
    assert update(tracker, finding(message="other words")) == []
    assert update(tracker, finding(probes=(0, 1))) == [("changed", LAYER, (0, 1))]
    assert update(tracker, finding(cause=None, probes=(0, 1))) == [("changed", LAYER, (0, 1))]
    assert update(tracker, epoch=7) == [("cleared", LAYER, (0, 1))]
    assert update(tracker) == []
    assert [(alert.status.value, alert.step, alert.epoch) for alert in tracker.alerts][-1] == ("cleared", 70, 7)
    assert len(tracker.alerts) == 4


def test_what_was_not_looked_at_is_not_cleared() -> None:
    tracker = AlertTracker()
    tracker.update(["probes"], [finding("probes", CallbackIssue.PROBES_MISSING)], step=0, epoch=0)

    assert tracker.update([LAYER], [], step=1, epoch=0) == []
    assert [alert.status for alert in tracker.update(["probes"], [], step=2, epoch=0)] == [Status.CLEARED]


def test_subjects_live_their_own_lives() -> None:
    tracker = AlertTracker()

    assert update(tracker, finding(), finding("other")) == [("raised", LAYER, (0,)), ("raised", "other", (0,))]
    assert update(tracker, finding("other")) == [("cleared", LAYER, (0,))]


# Findings


def test_no_finding_where_all_is_well() -> None:
    assert find_nulls([result({LAYER: (OK, OK)})], ["predicted"]) == []
    assert find_nulls([], []) == []


@pytest.mark.parametrize(
    ("state", "cause", "words"),
    [
        (NONE, None, ["the gradient is None", meaning(None)]),
        (ZERO, Cause.ZERO_GRADIENT, ["the gradient is zero", meaning(Cause.ZERO_GRADIENT)]),
        (NON_FINITE, Cause.NON_FINITE, ["not finite", meaning(Cause.NON_FINITE)]),
    ],
)
def test_a_finding_names_layer_probes_state_and_remedy(
    state: GradientState, cause: Cause | None, words: list[str]
) -> None:
    [found] = find_nulls([result({LAYER: (OK, state, OK, state)})], ["predicted"])

    assert (found.subject, found.cause, found.probes, found.targets) == (LAYER, cause, (1, 3), ("predicted",))
    assert found.remedy == remedy(cause)
    assert found.is_null
    for word in [repr(LAYER), "probes 1, 3 of 4", *words]:
        assert word in found.message


def test_one_probe_and_all_probes_are_told_in_grammar() -> None:
    [one] = find_nulls([result({LAYER: (OK, ZERO)})], ["predicted"])
    [every] = find_nulls([result({LAYER: (ZERO, ZERO)})], ["predicted"])

    assert "for probe 1 of 2" in one.message
    assert "for them" not in one.message
    assert "for all 2 probes" in every.message


def test_many_probes_are_not_all_listed() -> None:
    [found] = find_nulls([result({LAYER: (OK, *[ZERO] * 20)})], ["predicted"])

    assert "probes 1, 2, 3, 4, 5, 6, 7, 8, ... of 21" in found.message
    assert len(found.probes) == 20


def test_a_layer_a_finding_and_only_the_targets_concerned() -> None:
    first = result({"a": (OK, OK), LAYER: (OK, ZERO)})
    second = result({"a": (OK, OK), LAYER: (OK, OK)})

    [found] = find_nulls([first, second], ["predicted", "cat"])

    assert found.subject == LAYER
    assert found.targets == ("predicted",)


def test_of_two_states_at_one_layer_the_worse_names_the_cause_and_none_is_misnamed() -> None:
    [found] = find_nulls([result({LAYER: (ZERO, NON_FINITE, OK)})], ["predicted"])

    assert found.cause is Cause.NON_FINITE
    assert found.probes == (0, 1)
    assert "not finite for probes 0, 1" not in found.message  # that of probe 0 is zero


def test_a_cause_that_the_forward_pass_told_is_passed_on() -> None:
    never = result({LAYER: (NONE,)}, Cause.LAYER_NOT_CALLED, f"The forward pass never ran {LAYER!r}.")

    [found] = find_nulls([never], ["predicted"])

    assert found.cause is Cause.LAYER_NOT_CALLED
    assert f"never ran {LAYER!r}." in found.message
    assert ".." not in found.message


def test_a_diagnosis_is_what_is_told() -> None:
    place = SourceLocation("model.py", 12, "forward", "maps = maps.detach()", "model")
    reason = Diagnosis(LAYER, Cause.DETACHED, place, (1,), (), (), "seen", "do this")
    [found] = find_nulls([result({LAYER: (OK, NONE)})], ["predicted"], {LAYER: reason})

    assert (found.cause, found.location, found.probes) == (Cause.DETACHED, place, (1,))
    assert (found.message, found.remedy, found.diagnosis) == ("seen", "do this", reason)


# Renderings


def test_an_alert_as_a_record_is_json() -> None:
    alert = Alert(Status.RAISED, finding(), step=12, epoch=3)

    assert json.loads(json.dumps(alert.as_record())) == {
        "status": "raised",
        "step": 12,
        "epoch": 3,
        "layer": LAYER,
        "subject": LAYER,
        "cause": "zero_gradient",
        "probes": [0],
        "concerns_all": False,
        "targets": ["predicted"],
        "message": "m",
        "remedy": "r",
        "location": None,
    }


def test_an_alert_comes_back_from_its_record() -> None:
    place = SourceLocation("model.py", 12, "forward", "maps = maps.detach()", "model")
    for found in (finding(location=place), finding("writing", CallbackIssue.WRITING_FAILED, ()), finding(cause=None)):
        alert = Alert(Status.CHANGED, found, step=12, epoch=3)
        assert Alert.from_record(json.loads(json.dumps(alert.as_record()))) == alert


def test_a_tracker_goes_on_from_its_state() -> None:
    tracker, again = AlertTracker(), AlertTracker()
    update(tracker, finding(), finding("other"))
    update(tracker, finding("other"), epoch=1)
    again.load(json.loads(json.dumps(tracker.state())))

    assert again.alerts == tracker.alerts
    assert update(again, finding("other")) == []
    assert update(again) == [("cleared", "other", (0,))]


def test_an_alert_as_markdown_and_as_text() -> None:
    raised = Alert(Status.RAISED, finding(), step=12, epoch=3)
    cleared = Alert(Status.CLEARED, finding(), step=15, epoch=4)

    heading = f"### raised: zero_gradient\n\n`{LAYER}` · epoch 3 · step 12"
    assert raised.as_markdown().startswith(f"{heading}\n\nm\n\n**What to do.** r\n\n")
    assert raised.as_markdown().endswith(
        "why-is-my-gradient-none.md#zero_gradient), or `gradcam-callback explain-cause zero_gradient`"
    )
    assert cleared.as_markdown() == (
        f"### cleared: zero_gradient\n\n`{LAYER}` · epoch 4 · step 15\n\nThis is no longer so: m"
    )
    assert str(raised) == "m r"
    assert str(cleared) == "Cleared: m"


def test_the_line_to_blame_is_shown_among_its_neighbours() -> None:
    here = SourceLocation(__file__, 3, "forward", "from __future__ import annotations", "model")
    text = Alert(Status.RAISED, finding(location=here), step=0, epoch=0).as_markdown()

    assert "->    3  from __future__ import annotations" in text
    assert '      1  """What is wrong is said once' in text
    assert f"`{__file__}:3` in `forward`, in the module `model`" in text


def test_a_secret_among_the_neighbours_is_masked(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text('token = "hf_abcdefghijklmnopqrstuvwxyz"\nx = maps.detach()\n')
    here = SourceLocation(str(file), 2, "forward", "x = maps.detach()", "model")
    text = Alert(Status.RAISED, finding(location=here), step=0, epoch=0).as_markdown()

    assert "->    2  x = maps.detach()" in text
    assert "hf_" not in text
    assert "***" in text


def test_a_path_is_told_from_the_working_directory_or_by_its_name(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert short_path(str(tmp_path / "src" / "model.py")) == "src/model.py"
    assert short_path(str(tmp_path.parent / "other" / "model.py")) == "model.py"
    assert short_path("<string>") == "<string>"


def test_what_is_said_of_the_callbacks_own_troubles() -> None:
    found = [weights_modified(["model.norm.weight", "scale"]), probes_missing([9, 12]), *hidden_channels(6)]
    assert [str(one.cause) for one in found] == ["weights_modified", "probes_missing", "channels_hidden"]
    assert [one.message for one in found] == [
        "The model's forward writes in place to weights: 'model.norm.weight', 'scale' (in 'model.norm', the model "
        "itself). The pass that computes maps shares the weights, so those of the training have changed.",
        "There are no probes for positions 9, 12: the validation did not get that far.",
        "The images have 6 channels, as if 2 were stacked, and the panels show channels 0, 1, 2. A map that belongs to "
        "another image lies over the wrong one.",
    ]
    assert not any(one.is_null for one in found)
    assert [hidden_channels(count, channels) for count, channels in ((1, None), (3, None), (13, None), (6, [3]))] == [
        []
    ] * 4


@pytest.mark.parametrize(
    ("subject", "cause", "layer"),
    [
        (LAYER, None, LAYER),
        (LAYER, Cause.NON_FINITE, LAYER),
        ("forward", Cause.FORWARD_FAILED, None),
        ("writing", CallbackIssue.WRITING_FAILED, None),
    ],
)
def test_only_an_alert_about_a_layer_has_one(subject: str, cause: Any, layer: str | None) -> None:
    assert Alert(Status.RAISED, finding(subject, cause), 0, 0).layer == layer


# In a Trainer


def cb(target_layers: Any = LAYER, probes: Any = 4, **options: Any) -> GradCAMCallback:
    return GradCAMCallback(target_layers=target_layers, probes=probes, **options)


def null_warnings(fit: Run) -> list[str]:
    return [str(w.message) for w in fit.warnings if issubclass(w.category, GradientNullWarning)]


def test_a_detached_model_raises_one_alert_in_five_epochs(run: MakeRun) -> None:
    fit = run(cb(), detached(), max_epochs=5).fit()

    assert fit.alerts == [("raised", LAYER, "detached", 0)]
    [alert] = fit.callback.alerts
    assert (alert.layer, alert.cause, alert.probes, alert.step) == (LAYER, Cause.DETACHED, (0, 1, 2, 3), 0)
    assert null_warnings(fit) == [str(alert)]
    assert fit.alerts_file == [json.loads(json.dumps(alert.as_record()))]
    events = fit.events
    assert events.texts["gradcam/alerts"] == [(0, alert.as_markdown())]
    assert events.values("gradcam/null_gradients") == [4] * 5
    assert len(events.steps(f"gradcam/{LAYER}")) == 5


def test_without_any_gradient_the_norm_is_not_a_number(run: MakeRun) -> None:
    fit = run(cb(), detached(), max_epochs=1).fit()

    [norm] = fit.events.values(f"gradcam/gradient_norm/{LAYER}")
    assert math.isnan(norm)


def test_a_zero_head_that_stays_zero(run: MakeRun) -> None:
    fit = run(cb(), ZeroHead(held=True)).fit()

    assert fit.alerts == [("raised", LAYER, "zero_gradient", 0)]
    assert fit.events.values("gradcam/null_gradients") == [4, 4, 4]
    assert fit.events.values(f"gradcam/gradient_norm/{LAYER}") == [0, 0, 0]


def test_a_zero_head_that_training_moves_clears(run: MakeRun) -> None:
    fit = run(cb(), ZeroHead(held=False)).fit()

    assert fit.alerts == [("raised", LAYER, "zero_gradient", 0), ("cleared", LAYER, "zero_gradient", 0)]
    assert [alert.step for alert in fit.callback.alerts] == [0, STEPS]
    assert [line["status"] for line in fit.alerts_file] == ["raised", "cleared"]
    assert len(null_warnings(fit)) == 1
    assert [step for step, _ in fit.events.texts["gradcam/alerts"]] == [0, STEPS]


def test_changes_are_told_and_repetitions_are_not(run: MakeRun) -> None:
    fit = run(cb(), Faulty([[], [2], [2], [1, 2], []]), max_epochs=6).fit()

    assert fit.alerts == [
        ("raised", LAYER, "zero_gradient", 1),
        ("changed", LAYER, "zero_gradient", 3),
        ("cleared", LAYER, "zero_gradient", 4),
    ]
    assert [alert.probes for alert in fit.callback.alerts] == [(2,), (1, 2), (1, 2)]
    assert fit.events.values("gradcam/null_gradients") == [0, 1, 1, 2, 0, 0]


def test_one_probe_that_is_not_a_number(run: MakeRun) -> None:
    images = torch.stack([Spots()[index][0] for index in range(3)])
    images[1, 0, 5, 5] = math.nan
    fit = run(cb(probes=TensorProbes(images)), max_epochs=2).fit()

    assert fit.alerts == [("raised", LAYER, "non_finite", 0)]
    assert fit.callback.alerts[0].probes == (1,)
    assert fit.events.values("gradcam/null_gradients") == [1, 1]
    assert fit.callback.last_result is not None
    assert fit.callback.last_result.cams[LAYER].isnan().flatten(1).all(1).tolist() == [False, True, False]


def test_a_layer_that_is_not_called(run: MakeRun) -> None:
    fit = run(cb("model.spare"), max_epochs=2).fit()

    assert fit.alerts == [("raised", "model.spare", "layer_not_called", 0)]
    assert "'model.spare'" in null_warnings(fit)[0]
    assert "never ran" in null_warnings(fit)[0]
    assert len(fit.events.steps("gradcam/model.spare")) == 2


def test_a_null_at_one_layer_does_not_touch_the_other(run: MakeRun) -> None:
    fit = run(cb(["model.spare", LAYER]), max_epochs=1).fit()

    assert [subject for _, subject, _, _ in fit.alerts] == ["model.spare"]
    assert fit.callback.last_result is not None
    assert fit.callback.last_result.cams[LAYER].isfinite().all()


def test_raise_ends_the_run_before_the_first_training_step(run: MakeRun) -> None:
    trained = []

    class Count(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            trained.append(1)

    fit = run(cb(on_null="raise"), detached(), callbacks=[Count()])
    with pytest.raises(GradientNullError, match=r"'model\.stage' the gradient is None for all 4 probes.*detach\(\)"):
        fit.fit()

    assert trained == []
    assert fit.trainer.global_step == 0
    assert fit.alerts == [("raised", LAYER, "detached", 0)]
    assert [line["status"] for line in fit.alerts_file] == ["raised"]
    assert fit.events.steps("gradcam/alerts") == [0]


def test_raise_ends_the_run_when_a_null_appears(run: MakeRun) -> None:
    fit = run(cb(on_null="raise"), Faulty([[], [2]]), max_epochs=5)
    with pytest.raises(GradientNullError, match="for probe 2 of 4"):
        fit.fit()

    assert fit.trainer.global_step == 2 * STEPS
    events = fit.events
    assert events.steps(f"gradcam/{LAYER}") == [STEPS, 2 * STEPS]  # the panel that shows it, too
    assert events.steps("gradcam/alerts") == [2 * STEPS]


def test_raise_raises_again_in_the_next_run(run: MakeRun) -> None:
    """As in a notetracker: the cell is run once more with the same callback."""
    callback = cb(on_null="raise")
    for folder in ("first", "second"):
        with pytest.raises(GradientNullError):
            run(callback, detached(), folder=folder).fit()


def test_raise_in_validate(run: MakeRun) -> None:
    with pytest.raises(GradientNullError, match="None"):
        run(cb(on_null="raise"), detached()).validate()


def test_raise_raises_on_resume(run: MakeRun) -> None:
    first = run(cb(), detached(), max_epochs=1, folder="first", enable_checkpointing=True).fit()
    path = str(next(first.folder.rglob("*.ckpt")))
    second = run(cb(on_null="raise"), detached(), max_epochs=2, folder="second")
    with pytest.raises(GradientNullError):
        second.fit(ckpt_path=path, **UNPICKLE)


def test_ignore_is_silent_and_on_record(run: MakeRun) -> None:
    fit = run(cb(on_null="ignore"), detached(), max_epochs=2).fit()

    assert fit.our_warnings() == []
    assert fit.alerts == [("raised", LAYER, "detached", 0)]
    assert len(fit.alerts_file) == 1
    assert fit.events.steps("gradcam/alerts") == [0]


def test_the_next_run_is_told_what_is_wrong_in_it(run: MakeRun) -> None:
    """Another run has another log directory; an alert that is only in the first one is missing there."""
    callback = cb()
    first = run(callback, detached(), max_epochs=1, folder="first").fit()
    second = run(callback, detached(), max_epochs=1, folder="second").fit()

    for look in (first, second):
        assert [line["status"] for line in look.alerts_file] == ["raised"]
        assert len(null_warnings(look)) == 1
        assert look.events.steps("gradcam/alerts") == [0]


def test_the_next_run_is_told_its_own_reason(run: MakeRun) -> None:
    def under_no_grad(maps: Tensor) -> Tensor:
        with torch.no_grad():
            return maps * 2

    callback = cb()
    run(callback, detached(), max_epochs=1, folder="first").fit()
    run(callback, Classifier(Network(under_no_grad)), max_epochs=1, folder="second").fit()

    assert [alert.cause for alert in callback.alerts if alert.status is Status.RAISED][-1] is Cause.NO_GRAD
    assert callback.last_result is not None
    assert callback.last_result.health[LAYER].cause is Cause.NO_GRAD


def test_loading_an_older_checkpoint_forgets_no_alert(run: MakeRun) -> None:
    """`test(ckpt_path="best")` goes back to the weights of an earlier epoch; what was said later was said."""
    keep_all = ModelCheckpoint(save_top_k=-1)
    fit = run(cb(), Faulty([[], [1]]), max_epochs=2, enable_checkpointing=True, callbacks=[keep_all]).fit()
    path = str(min(fit.folder.rglob("*.ckpt")))
    before = list(fit.callback.alerts)
    fit.test(ckpt_path=path, **UNPICKLE)

    assert [alert.status for alert in before] == [Status.RAISED]
    assert fit.callback.alerts[:1] == before


def test_an_alert_of_another_run_is_not_cleared_in_the_next(run: MakeRun) -> None:
    callback = cb()
    run(callback, detached(), max_epochs=1, folder="first").fit()
    second = run(callback, Classifier(), max_epochs=1, folder="second").fit()

    assert second.alerts_file == []


class Raising(Classifier):
    """Its forward works in training alone: the usual slip is a forward that takes a whole batch, or a missing one."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training and len(images) == 3:
            raise RuntimeError("the size of tensor a must match")
        return super().forward(images)


def test_a_model_that_raises_does_not_end_the_training(run: MakeRun) -> None:
    fit = run(cb(probes=3), Raising()).fit()

    assert fit.trainer.global_step == 3 * STEPS
    assert fit.alerts == [("raised", "forward", "forward_failed", 0)]
    [text] = null_warnings(fit)
    assert "RuntimeError" in text
    assert "the size of tensor a must match" in text
    assert text.endswith(f". {remedy(Cause.FORWARD_FAILED)}")
    assert fit.events.values("gradcam/null_gradients") == [3, 3, 3]


def test_a_model_that_raises_for_a_while_is_cleared(run: MakeRun) -> None:
    class ForAWhile(Raising):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) if self.current_epoch == 1 else Classifier.forward(self, images)

    fit = run(cb(probes=3), ForAWhile()).fit()

    assert fit.alerts == [
        ("raised", "forward", "forward_failed", 1),
        ("cleared", "forward", "forward_failed", 2),
    ]


def test_a_model_that_raises_raises_on_request(run: MakeRun) -> None:
    with pytest.raises(GradientNullError, match="the size of tensor a"):
        run(cb(probes=3, on_null="raise"), Raising()).fit()


def test_a_forward_that_cannot_take_images_is_told_what_to_do(run: MakeRun) -> None:
    class TakesABatch(Classifier):
        def forward(self, pair: Any) -> Tensor:
            images, _ = pair
            return super().forward(images)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.nn.functional.cross_entropy(self(batch), batch[1])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch)

    fit = run(cb(), TakesABatch(), max_epochs=1).fit()

    assert fit.alerts == [("raised", "forward", "forward_failed", 0)]
    assert "model(images)" in null_warnings(fit)[0]
    assert "`inputs`" in null_warnings(fit)[0]


@pytest.mark.parametrize(("name", "also"), [("displayable", ["writing"]), ("overlays", [])], ids=["images", "maps"])
def test_a_fault_of_ours_does_not_end_the_training(
    run: MakeRun, monkeypatch: pytest.MonkeyPatch, name: str, also: list[str]
) -> None:
    """The images are shown in the recording, too."""

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("our own fault")

    monkeypatch.setattr(tiles, name, fail)
    fit = run(cb(on_null="raise")).fit()

    assert fit.trainer.global_step == 3 * STEPS
    assert [(status, subject) for status, subject, *_ in fit.alerts] == [
        ("raised", subject) for subject in ["callback", *also]
    ]
    for text in fit.our_warnings():
        assert "ZeroDivisionError: our own fault" in text
        assert "training goes on" in text


def test_a_fault_of_ours_is_no_null_gradient(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps were computed; only the picture failed."""

    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("our own fault")

    monkeypatch.setattr(tiles, "overlays", fail)
    fit = run(cb(), max_epochs=1).fit()

    assert fit.events.values("gradcam/null_gradients") == [0]
    assert fit.callback.last_result is not None


def test_probes_that_do_not_fit_together_do_not_end_the_training(run: MakeRun) -> None:
    def of_two_sizes(batch: Any) -> Any:
        size = 8 if of_two_sizes.calls.pop() else 16  # type: ignore[attr-defined]
        images = torch.stack([image for image, _ in batch])[..., :size, :size]
        return images, torch.tensor([label for _, label in batch])

    of_two_sizes.calls = [1, 0, 1, 0]  # type: ignore[attr-defined]
    data = DataLoader(Spots(8), batch_size=4, collate_fn=of_two_sizes)
    fit = run(cb(probes=[0, 5]), max_epochs=2).fit(val=data)

    assert fit.trainer.global_step == 2 * STEPS
    assert fit.alerts == [("raised", "probes", "callback_failed", 0)]
    [text] = fit.our_warnings()
    assert "(3, 8, 8)" in text
    assert "(3, 16, 16)" in text
