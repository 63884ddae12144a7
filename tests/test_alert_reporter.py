"""Everything of a moment is published at once, nothing that was recorded is lost, and notices are no alarms."""

from __future__ import annotations

import copy
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_writer import Listing, panel

from gradcam_callback import Cause, GradientNullError, GradientNullWarning, SourceLocation
from gradcam_callback.causes import CallbackIssue
from gradcam_callback.reporting import alert_reporter
from gradcam_callback.reporting.alert_reporter import AlertReporter
from gradcam_callback.reporting.alerts import Finding
from gradcam_callback.reporting.report import Report
from gradcam_callback.reporting.sinks.files import AlertFile
from gradcam_callback.reporting.writer import BackgroundWriter


class Memory(Listing):
    """A sink that keeps the reports with alerts, and fails on demand."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__("memory")
        self.reports: list[Report] = []
        self.broken = broken

    def write(self, report: Report) -> None:
        super().write(report)
        if self.broken:
            raise OSError("disk full")
        if report.alerts:
            self.reports.append(report)


def opened(on_null: str = "warn", *sinks: Any, silent: bool = False, **options: Any) -> AlertReporter:
    reporter = AlertReporter(on_null, **options)
    reporter.open(sinks, silent=silent)
    return reporter


def null(layer: str = "stage", location: SourceLocation | None = None) -> Finding:
    return Finding(layer, Cause.DETACHED, (0,), ("predicted",), f"No gradient at {layer}.", "Mend it.", location)


def issue(subject: str = "probes") -> Finding:
    return Finding(subject, CallbackIssue.PROBES_MISSING, (), (), "Only two.", "Nothing.")


def publish(reporter: AlertReporter, *findings: Finding, step: int = 3) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reporter.record([finding.subject for finding in findings], findings, step=step, epoch=0)
        reporter.publish(step=step, epoch=0)
    return caught


def close(reporter: AlertReporter, step: int = 3) -> list[str]:
    """What is warned of at the end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reporter.close(step=step, epoch=0)
    return [str(warning.message) for warning in caught]


def test_all_of_a_moment_is_one_report(tmp_path: Path) -> None:
    reporter = opened("warn", sink := Memory(), AlertFile(tmp_path))
    caught = publish(reporter, null("a"), null("b"), issue())
    assert publish(reporter, null("a"), step=6) == []  # what was said is not said again
    close(reporter)

    [report] = sink.reports
    assert (report.alerts_tag, report.step) == ("gradcam/alerts", 3)
    assert [part.split("\n")[0] for part in report.markdown.split("\n\n---\n\n")] == [
        "### raised: detached",
        "### raised: detached",
        "### raised: probes_missing",
    ]
    lines = (tmp_path / "gradcam" / "alerts.jsonl").read_text().splitlines()
    assert [json.loads(line)["subject"] for line in lines] == ["a", "b", "probes"]
    assert [warning.category for warning in caught] == [GradientNullWarning, GradientNullWarning, UserWarning]


def test_panels_and_alerts_of_a_step_travel_together() -> None:
    reporter = opened("warn", sink := Memory())
    reporter.record(["stage"], [null()], step=3, epoch=0)
    with pytest.warns(GradientNullWarning):
        reporter.publish({"gradcam/stage": panel()}, step=3, epoch=0)
    close(reporter)
    assert sink.seen == [("gradcam/stage", 3), ("alerts", 3), "flush"]


def test_raise_raises_as_long_as_there_is_a_null_and_only_then() -> None:
    reporter = opened("raise", sink := Memory())
    for _ in range(2):
        with pytest.raises(GradientNullError, match=r"No gradient at stage\. Mend it\."):
            publish(reporter, null())
    reporter.record(["stage"], [], step=9, epoch=1)
    reporter.publish(step=9, epoch=1)
    reporter.record(["stage"], [null()], step=12, epoch=1)
    close(reporter, step=12)  # at the end nothing is raised, and what was recorded is written
    texts = [report.markdown.split("\n")[0] for report in sink.reports]
    assert texts == ["### raised: detached", "### cleared: detached", "### raised: detached"]


@pytest.mark.parametrize("how", ["ignore", "silent"])
def test_what_is_not_warned_of_is_on_record(how: str) -> None:
    reporter = opened("ignore" if how == "ignore" else "warn", sink := Memory(), silent=how == "silent")
    assert publish(reporter, null()) == []
    close(reporter)
    assert len(sink.reports) == len(reporter.tracker.alerts) == 1


def test_another_run_is_told_again_and_goes_on_with_the_same_list() -> None:
    first = opened()
    assert len(publish(first, null())) == 1
    second = AlertReporter("warn", alerts=first.tracker.alerts)
    second.open([])
    assert len(publish(second, null())) == 1
    assert len(first.tracker.alerts) == 2


# Warnings


def test_a_warning_points_at_the_users_line_or_at_none() -> None:
    reporter = opened()
    [with_line] = publish(reporter, null("a", SourceLocation(__file__, 12, "forward", "code", "")))
    [without] = publish(reporter, null("b"))
    assert (with_line.filename, with_line.lineno) == (__file__, 12)
    assert without.filename == "<gradcam_callback>"
    shown = warnings.formatwarning(without.message, without.category, without.filename, without.lineno)
    assert shown == "<gradcam_callback>:1: GradientNullWarning: No gradient at b. Mend it.\n"


SECRET = 'token = "hf_abcdefghijklmnopqrstuvwxyz"'


@pytest.mark.parametrize("source_lines", [True, False])
def test_a_secret_is_never_told_and_lines_and_paths_only_on_request(tmp_path: Path, source_lines: bool) -> None:
    file = tmp_path / "model.py"
    file.write_text(f"{SECRET}\nx = maps.detach()\n{SECRET}\n")
    reporter = opened("warn", sink := Memory(), source_lines=source_lines)
    told = []
    for line, code in ((2, "x = maps.detach()"), (3, SECRET)):
        place = SourceLocation(str(file), line, "forward", code, "model", (f"{file}:1 in helper",))
        found = null(f"layer{line}", place)
        message = f"{found.message} It is at {file}:{line}: `{code}`."
        for warning in publish(reporter, Finding(**{**vars(found), "message": message})):
            told.append(warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno))
    close(reporter)
    told += [
        text for report in sink.reports for text in (report.markdown, *(str(a.as_record()) for a in report.alerts))
    ]

    assert len(told) == 6
    for text in told:
        assert "hf_abc" not in text
        assert "model.py" in text
        assert (str(tmp_path) in text) == source_lines, text
        assert "x = maps.detach()" not in text or source_lines
    assert any("x = maps.detach()" in text for text in told) == source_lines


# Notices


def test_a_notice_is_said_once_in_the_log_and_is_no_alert(caplog: pytest.LogCaptureFixture) -> None:
    reporter = opened("raise", sink := Memory())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            reporter.notice("There are 4 probes.")
        reporter.publish(step=1, epoch=0)
    reporter.notice("Another.")
    close(reporter)

    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records] == [
        ("gradcam_callback", logging.INFO, "There are 4 probes."),
        ("gradcam_callback", logging.INFO, "Another."),
    ]
    assert sink.reports == reporter.tracker.alerts == []


@pytest.mark.parametrize("handler", [False, True], ids=["by itself", "by the user's handler"])
def test_a_notice_is_seen_without_any_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], handler: bool
) -> None:
    """A logger as it is in a plain script, where nobody has told Python what to log."""
    logger, root = logging.Logger("gradcam_callback"), logging.Logger("root", logging.WARNING)
    logger.parent = root
    if handler:
        root.addHandler(logging.StreamHandler(sys.stdout))
    monkeypatch.setattr(alert_reporter, "_NOTICES", logger)
    opened().notice("A notice.")
    opened().notice("Of another callback.")
    shown = "A notice.\nOf another callback.\n"
    assert tuple(capsys.readouterr()) == ((shown, "") if handler else ("", shown))


def test_notices_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(alert_reporter, "_NOTICES", logging.Logger("gradcam_callback", logging.WARNING))
    opened().notice("A notice.")
    assert capsys.readouterr().err == ""


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opens when a notice is said."""
    gate = threading.Event()

    class Opening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            gate.set()

    logging.getLogger("gradcam_callback").addHandler(handler := Opening())
    yield gate
    logging.getLogger("gradcam_callback").removeHandler(handler)


def test_a_long_wait_at_the_end_is_told_before(caplog: pytest.LogCaptureFixture, gate: threading.Event) -> None:
    reporter = opened("warn", sink := Listing(gate=gate))
    reporter.publish({"gradcam/stage": panel(probes=20_000)}, step=1, epoch=0)
    close(reporter)
    assert sink.in_time == [True]
    assert "writing its last panels; that takes about 5 s" in caplog.text


def test_a_training_that_waits_for_panels_is_told_why(caplog: pytest.LogCaptureFixture, gate: threading.Event) -> None:
    reporter = opened("warn", sink := Listing(gate=gate))
    for step in range(6):
        reporter.publish({"gradcam/stage": panel()}, step=step, epoch=0)
    close(reporter)
    assert sink.in_time == [True] * 6
    assert [record.getMessage() for record in caplog.records] == [
        "Grad-CAM's panels are written more slowly than they come: the training waits for them."
    ]


# What cannot be written


def test_a_sink_that_fails_is_one_alert_until_it_works_again() -> None:
    reporter = opened("ignore", sink := Memory(broken=True))
    publish(reporter, null("a"))
    assert close(reporter) == [
        "Panels or alerts could not be written to memory: OSError: disk full. Look for a full disk, a log directory "
        "that is gone or cannot be written to, or a service that cannot be reached. The training goes on."
    ]
    reporter.open([sink])
    publish(reporter, null("b"))
    assert close(reporter) == []  # it is known
    assert [str(alert.cause) for alert in reporter.tracker.alerts].count("writing_failed") == 1

    sink.broken = False
    reporter.open([sink])
    publish(reporter, null("c"))
    close(reporter)
    [cleared] = [alert for alert in reporter.tracker.alerts if alert.status.value == "cleared"]
    assert (cleared.cause, cleared.finding.subject) == (CallbackIssue.WRITING_FAILED, "writing")


def test_another_sink_takes_the_alert_of_the_one_that_failed(tmp_path: Path) -> None:
    reporter = opened("ignore", Memory(broken=True), good := Memory())
    publish(reporter, null())
    close(reporter)
    assert [str(alert.cause) for report in good.reports for alert in report.alerts] == ["detached", "writing_failed"]


@pytest.mark.parametrize("name", ["submit", "close"])
def test_a_writer_that_fails_is_an_alert_or_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    reporter = opened("warn", Memory())
    monkeypatch.setattr(BackgroundWriter, name, fail)
    action: Callable[[], Any] = lambda: [str(warning.message) for warning in publish(reporter, null())]  # noqa: E731
    if name == "submit":
        assert any("can't start new thread" in text for text in action())
        return
    with pytest.raises(RuntimeError, match="can't start"):
        close(reporter)  # the callback makes an alert of it


def test_a_reporter_can_be_copied_while_it_is_open() -> None:
    reporter = opened("ignore", Memory())
    publish(reporter, null())
    assert copy.deepcopy(reporter).tracker.alerts == reporter.tracker.alerts
    close(reporter)
