"""The journal: everything of a moment is said at once, and nothing that was noted is lost."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import pytest

from gradcam_callback import Cause, GradientNullError, GradientNullWarning, SourceLocation
from gradcam_callback.causes import CallbackIssue
from gradcam_callback.reporting.alert_reporter import AlertReporter
from gradcam_callback.reporting.alerts import Finding
from gradcam_callback.reporting.sinks import Pixels


class Memory:
    """A sink that remembers, and fails on demand."""

    def __init__(self, broken: bool = False) -> None:
        self.texts: list[tuple[str, str, int]] = []
        self.broken = broken

    def image(self, tag: str, pixels: Pixels, step: int) -> None:
        raise AssertionError("no panel is drawn here")

    def text(self, tag: str, markdown: str, step: int) -> None:
        if self.broken:
            raise OSError("disk full")
        self.texts.append((tag, markdown, step))

    def flush(self) -> None:
        pass


def null(layer: str = "stage", location: SourceLocation | None = None) -> Finding:
    return Finding(layer, Cause.DETACHED, (0,), ("predicted",), f"No gradient at {layer}.", "Mend it.", location)


def trouble(subject: str = "probes") -> Finding:
    return Finding(subject, CallbackIssue.FEWER_PROBES, (), (), "Only two.", "Nothing.")


def say(journal: AlertReporter, *findings: Finding, step: int = 3) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        journal.note([finding.subject for finding in findings], findings, step=step, epoch=0)
        journal.say(step=step, epoch=0)
    return caught


def test_all_of_a_moment_is_one_text_and_a_line_each(tmp_path: Path) -> None:
    sink, journal = Memory(), AlertReporter("warn")
    journal.open(sink, tmp_path)
    caught = say(journal, null("a"), null("b"), trouble())
    journal.close(step=3, epoch=0)

    [(tag, text, step)] = sink.texts
    assert (tag, step) == ("gradcam/alerts", 3)
    assert [part.split("\n")[0] for part in text.split("\n\n---\n\n")] == [
        "### raised: detached",
        "### raised: detached",
        "### raised: fewer_probes",
    ]
    lines = (tmp_path / "gradcam" / "alerts.jsonl").read_text().splitlines()
    assert [json.loads(line)["subject"] for line in lines] == ["a", "b", "probes"]
    assert [warning.category for warning in caught] == [GradientNullWarning, GradientNullWarning, UserWarning]


def test_what_was_said_is_not_said_again(tmp_path: Path) -> None:
    sink, journal = Memory(), AlertReporter("warn")
    journal.open(sink, tmp_path)
    say(journal, null())
    assert say(journal, null(), step=6) == []
    journal.close(step=6, epoch=0)
    assert len(sink.texts) == 1


def test_a_warning_points_at_the_line_to_blame() -> None:
    journal = AlertReporter("warn")
    journal.open(None, None)
    [warning] = say(journal, null(location=SourceLocation(__file__, 12, "forward", "code", "")))
    assert (warning.filename, warning.lineno) == (__file__, 12)


def test_raise_raises_as_long_as_there_is_a_null_and_only_then(tmp_path: Path) -> None:
    sink, journal = Memory(), AlertReporter("raise")
    journal.open(sink, tmp_path)
    for _ in range(2):
        with pytest.raises(GradientNullError, match=r"No gradient at stage\. Mend it\."):
            say(journal, null())
    journal.note(["stage"], [], step=9, epoch=1)
    journal.say(step=9, epoch=1)
    journal.close(step=9, epoch=1)
    assert [text.split("\n")[0] for _, text, _ in sink.texts] == ["### raised: detached", "### cleared: detached"]


@pytest.mark.parametrize("how", ["ignore", "silent"])
def test_what_is_not_warned_of_is_on_record(tmp_path: Path, how: str) -> None:
    sink, journal = Memory(), AlertReporter("ignore" if how == "ignore" else "warn")
    journal.open(sink, tmp_path, silent=how == "silent")
    assert say(journal, null()) == []
    journal.close(step=3, epoch=0)
    assert len(sink.texts) == len(journal.book.alerts) == 1


def test_what_was_noted_is_written_at_the_close() -> None:
    sink, journal = Memory(), AlertReporter("raise")
    journal.open(sink, None)
    journal.note(["stage"], [null()], step=1, epoch=0)
    journal.close(step=1, epoch=0)
    assert len(sink.texts) == 1


def test_a_sink_that_fails_is_an_alert_until_it_works_again() -> None:
    sink, journal = Memory(broken=True), AlertReporter("ignore")
    journal.open(sink, None)
    say(journal, null("a"))
    with pytest.warns(UserWarning, match="disk full"):
        journal.close(step=4, epoch=0)
    assert journal.book.alerts[-1].cause is CallbackIssue.WRITING_FAILED

    sink.broken = False
    journal.open(sink, None)
    say(journal, null("b"))
    journal.close(step=5, epoch=0)
    assert journal.book.alerts[-1].status.value == "cleared"
    assert journal.book.alerts[-1].finding.subject == "writing"


def test_a_directory_that_cannot_be_written_to_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "gradcam").write_text("a file where a folder should be")
    journal = AlertReporter("ignore")
    journal.open(None, tmp_path)
    [warning] = say(journal, null())
    assert "could not be written" in str(warning.message)


def test_a_journal_can_be_copied_while_it_is_open() -> None:
    journal = AlertReporter("ignore")
    journal.open(Memory(), None)
    say(journal, null())
    assert copy.deepcopy(journal).book.alerts == journal.book.alerts
    journal.close(step=3, epoch=0)
