"""Blame from hand-made traces: graphs of a few steps, drawn in the comments."""

from __future__ import annotations

import site
import sysconfig
from pathlib import Path

import pytest

from gradcam_callback.causes import Cause
from gradcam_callback.diagnosis.path import path_through
from gradcam_callback.diagnosis.search import (
    END,
    Evidence,
    GradientStats,
    ancestors,
    blocking_steps,
    first_non_finite,
    first_non_finite_in_backward,
    gradient_sinks,
    loss_steps,
    receives_tiny_gradient,
    side_branch_losses,
)
from gradcam_callback.diagnosis.source import Frame, locate
from gradcam_callback.diagnosis.trace import Step, Trace, Use

ALIVE, DEAD = True, False


def use(producer: int, alive: bool = ALIVE, finite: bool = True) -> Use:
    return Use(producer, alive, None, (2, 3), finite)


def step(
    index: int, *uses: Use, inherent_cause: Cause | None = None, cut_id: int | None = None, finite: bool = True
) -> Step:
    return Step(index, f"op{index}", "", uses, inherent_cause, cut_id, (), (2, 3), finite)


def evidence(*steps: Step, end: Use | None, gradients: dict[tuple[int, int], float] | None = None) -> Evidence:
    found = {place: GradientStats(norm, norm == norm, 0 < norm < 1e-6) for place, norm in (gradients or {}).items()}
    return Evidence(Trace([step(0), *steps]), end, found)


def indices(steps: list[Step]) -> list[int]:
    return [step.index for step in steps]


# 0 -> 1 detach -> 2 -> END
CUT = evidence(step(1, use(0), inherent_cause=Cause.DETACHED, cut_id=1), step(2, use(1, DEAD)), end=use(2, DEAD))


def test_lost_at_the_last_step_that_used_something_alive() -> None:
    assert indices(loss_steps(CUT)) == [1]
    assert indices(blocking_steps(CUT)) == [1]


def test_nothing_is_lost_on_a_live_branch_next_to_a_cut() -> None:
    # 0 -> 1 detach -> 3, 0 -> 2 -> 3 -> END
    steps = step(1, use(0), inherent_cause=Cause.DETACHED), step(2, use(0)), step(3, use(1, DEAD), use(2))
    assert loss_steps(evidence(*steps, end=use(3))) == []


def test_bookkeeping_is_not_blamed() -> None:
    # 0 -> 1 detach (used by nothing), 0 -> 2 argmax -> END
    steps = step(1, use(0), inherent_cause=Cause.DETACHED, cut_id=1), step(2, use(0))
    assert indices(loss_steps(evidence(*steps, end=use(2, DEAD)))) == [2]


def test_of_a_block_the_first_lost_operation_on_the_way_is_blamed() -> None:
    # in one block: 0 -> 1 -> 3, 0 -> 3 (a residual), 0 -> 2 (bookkeeping)
    block = {"inherent_cause": Cause.NO_GRAD, "cut_id": 4}
    steps = step(1, use(0), **block), step(2, use(0), **block), step(3, use(0), use(1, DEAD), **block)
    assert indices(loss_steps(evidence(*steps, end=use(3, DEAD)))) == [1]


def test_a_gradient_stops_where_it_enters_and_does_not_leave() -> None:
    # 0 -> 1 -> 2 -> END, zero behind 2
    found = evidence(step(1, use(0)), step(2, use(1)), end=use(2), gradients={(END, 0): 1.0, (2, 0): 0.0, (1, 0): 0.0})
    assert indices(gradient_sinks(found, lambda gradient: gradient.nonzero)) == [2]
    assert gradient_sinks(found, lambda gradient: True) == []


def test_a_zero_on_a_side_branch_after_another_zero_is_not_blamed() -> None:
    # 0 -> 1 -> 2 -> 4 -> END, 1 -> 3 -> 4: zero behind 1 and, on the side branch, behind 3
    steps = step(1, use(0)), step(2, use(1)), step(3, use(1)), step(4, use(2), use(3))
    gradients = {(END, 0): 1.0, (4, 0): 1.0, (4, 1): 1.0, (2, 0): 1.0, (3, 0): 0.0, (1, 0): 0.0}
    found = evidence(*steps, end=use(4), gradients=gradients)
    assert indices(gradient_sinks(found, lambda gradient: gradient.nonzero)) == [1]


def test_a_custom_function_is_one_thing() -> None:
    # 0 -> (1 -> 2) -> END, and nothing of the inside is alive
    custom = {"inherent_cause": Cause.CUSTOM_FUNCTION}
    steps = step(1, use(0), **custom), step(2, use(1, DEAD), **custom)
    passing = evidence(*steps, end=use(2), gradients={(END, 0): 1.0, (1, 0): 1.0})
    assert blocking_steps(passing) == []
    assert indices(blocking_steps(evidence(*steps, end=use(2), gradients={(END, 0): 1.0}))) == [1]


def test_losses_on_side_branches_are_found_only_where_a_gradient_comes_by() -> None:
    # 0 -> 1 detach -> 3 <- 2 <- 0, 3 -> END; and 4 detach, behind a step that is zero
    steps = (
        step(1, use(0), inherent_cause=Cause.DETACHED, cut_id=1),
        step(2, use(0)),
        step(3, use(1, DEAD), use(2)),
    )
    assert indices(side_branch_losses(evidence(*steps, end=use(3), gradients={(END, 0): 1.0, (3, 1): 1.0}))) == [1]
    assert side_branch_losses(evidence(*steps, end=use(3), gradients={(END, 0): 0.0})) == []


def test_not_finite_is_traced_to_where_it_begins_and_not_to_what_is_finite_again() -> None:
    # 1 is infinite and masked away in 2; 3 is NaN, 4 goes on
    steps = (
        step(1, use(0), finite=False),
        step(2, use(1, finite=False)),
        step(3, use(2), finite=False),
        step(4, use(3, finite=False), finite=False),
    )
    found = first_non_finite(evidence(*steps, end=use(4, finite=False)))
    assert found is not None
    assert found.index == 3
    assert first_non_finite(evidence(*steps[:2], end=use(2))) is None


def test_not_finite_in_backward_is_blamed_on_the_step_that_a_gradient_goes_through() -> None:
    # 0 -> 1 -> 2 -> END; 3 compares, and no gradient goes through it
    steps = step(1, use(0)), step(2, use(1)), step(3, use(1))
    gradients = {(END, 0): 1.0, (2, 0): 1.0, (1, 0): float("nan"), (3, 0): 1.0}
    found = first_non_finite_in_backward(evidence(*steps, end=use(2), gradients=gradients))
    assert found is not None
    assert found.index == 1


def test_tiny_gradients_are_told_at_the_step_they_come_to() -> None:
    found = evidence(step(1, use(0)), step(2, use(1)), end=use(2), gradients={(END, 0): 1.0, (2, 0): 1e-7})
    assert receives_tiny_gradient(found, found.trace.steps[1])
    assert not receives_tiny_gradient(found, found.trace.steps[2])


def test_ancestors_leave_out_what_the_score_does_not_need() -> None:
    found = evidence(step(1, use(0)), step(2, use(0)), step(3, use(1)), end=use(3))
    assert indices(ancestors(found)) == [1, 3]
    assert indices(ancestors(found, 3)) == [1]


def test_the_path_goes_through_the_step_that_is_asked_for() -> None:
    # 0 -> 1 -> 3, 0 -> 2 -> 3 -> END: both are as short
    steps = step(1, use(0)), step(2, use(0)), step(3, use(1), use(2))
    found = evidence(*steps, end=use(3), gradients={(END, 0): 2.0, (3, 1): 1.0})
    assert [part.operation for part in path_through(found, steps[1])] == ["op0", "op2", "op3"]
    assert [part.gradient_norm for part in path_through(found, steps[1])] == [None, 1.0, 2.0]
    assert [part.alive for part in path_through(CUT, None)] == [True, False, False]


def test_the_path_ends_where_a_value_leaves_torch() -> None:
    found = evidence(step(1, use(0)), end=None)
    leaving = step(2, use(1), inherent_cause=Cause.LEFT_TORCH)
    parts = path_through(found, leaving)
    assert [(part.operation, part.alive) for part in parts] == [("op0", True), ("op1", True), ("op2", False)]


# Lines

LIBRARY = str(Path(sysconfig.get_paths()["purelib"]) / "torch" / "nn" / "functional.py")
THIRD = str(Path(sysconfig.get_paths()["purelib"]) / "timm" / "models" / "vit.py")
STANDARD = str(Path(sysconfig.get_paths()["stdlib"]) / "functools.py")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([LIBRARY, THIRD, STANDARD, __file__, "/home/me/train.py"], __file__),
        (["<eval_with_key>.1", LIBRARY, "/tmp/ipykernel_1/2.py"], "/tmp/ipykernel_1/2.py"),
        (["/home/me/.venv/lib/python3.12/site-packages/timm/a.py", __file__], __file__),
        ([LIBRARY, THIRD, STANDARD], THIRD),
        ([LIBRARY, STANDARD, "<frozen runpy>"], None),
        ([], None),
    ],
)
def test_the_line_is_the_innermost_of_the_users_own(files: list[str], expected: str | None) -> None:
    found = locate([Frame(file, 1, "f") for file in files], "body.0")
    assert (None if found is None else found.file) == expected
    if found is not None:
        assert found.module == "body.0"
        assert len(found.detail) == files.index(found.file)


def test_the_code_is_quoted() -> None:
    found = locate([Frame(__file__, 1, "f")], "")
    assert found is not None
    assert found.code == '"""Blame from hand-made traces: graphs of a few steps, drawn in the comments."""'


def test_user_site_is_a_library() -> None:
    assert locate([Frame(f"{site.getusersitepackages()}/torch/x.py", 1, "f")], "") is None
