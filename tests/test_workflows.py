"""What GitHub does with the project: CI runs our make targets, and issues bring what the doctor says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradcam_callback import pages

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
FORMS = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_ci_runs_make_targets_and_nothing_else() -> None:
    jobs = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, flags=re.MULTILINE))
    assert {command.split()[0] for command in commands} == {"make"}
    assert {command.split()[1] for command in commands} <= targets
    assert {"make lint", "make test", "make docs", "make package"} <= set(commands)


def test_ci_tries_the_versions_of_python_that_are_declared_and_told() -> None:
    job = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["python"]
    table = (ROOT / "docs" / "where-it-runs.md").read_text().partition("## Versions of Python")[2]
    named = re.findall(r"^\| (3\.\d+) \|", table, flags=re.MULTILINE)
    own = "3.11"  # `make test` runs on it
    declared = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert sorted([*job["strategy"]["matrix"]["version"], own]) == sorted(named) == sorted(declared)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_brings_what_the_doctor_says(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    fields = {part["id"]: part for part in form["body"]}
    assert len(fields) == len(form["body"])
    assert "gradcam-callback doctor --json" in fields["doctor"]["attributes"]["description"]
    assert path.stem == "wish" or fields["doctor"]["validations"]["required"]


def test_issues_link_to_this_repository() -> None:
    for link in read(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml")["contact_links"]:
        assert link["url"].startswith(pages.REPOSITORY)
