"""Runs whose folder is on another file system: all of it goes there, and none of it into a folder named `memory:`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import Run
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from models import STEPS, detached

from gradcam_callback import GradCAMCallback, cli, read_run

MakeRun = Callable[..., Run]

LAYER = "model.stage"
KINDS = ["no logger", "no logger, the root", "CSVLogger", "TensorBoardLogger"]


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty file system in memory; the working directory is the test's folder."""
    monkeypatch.chdir(tmp_path)
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return system


def settings_of(kind: str, url: str) -> dict[str, Any]:
    if kind == "CSVLogger":
        return {"logger": CSVLogger(url, name="table"), "default_root_dir": url}
    if kind == "TensorBoardLogger":
        return {"logger": TensorBoardLogger(url, name="board"), "default_root_dir": url}
    return {"logger": False, "default_root_dir": "memory://" if "root" in kind else url}


def assert_run(fit: Run, url: str, local: Path) -> None:
    """All of a run of two epochs is below a URL, and nothing below a folder."""
    assert [str(alert.cause) for alert in fit.callback.alerts] == ["detached"]
    assert read_run(url).steps.tolist() == [STEPS, 2 * STEPS]
    system, root = fsspec.core.url_to_fs(url)
    names = system.find(root)
    assert [name for name in names if name.endswith("gradcam/alerts.jsonl")]
    assert bool([name for name in names if name.endswith(".png")]) is not isinstance(
        fit.trainer.logger, TensorBoardLogger
    )
    assert os.listdir(local) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_memory(run: MakeRun, memory: Any, tmp_path: Path, kind: str) -> None:
    fit = run(GradCAMCallback(LAYER, 4), detached(), max_epochs=2, **settings_of(kind, "memory://bucket/runs")).fit()
    assert_run(fit, "memory://", tmp_path)


def test_the_report_of_a_run_in_memory(run: MakeRun, memory: Any, tmp_path: Path) -> None:
    run(GradCAMCallback(LAYER, 4), max_epochs=1, logger=False, default_root_dir="memory://runs").fit()
    cli.main(["report", "memory://runs", "-o", "memory://reports/one.html"])
    assert memory.cat_file("/reports/one.html").startswith(b"<!doctype html>")
    assert os.listdir(tmp_path) == []


# Object stores


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server on this machine."""
    server = pytest.importorskip("moto.server", reason="NOT TESTED: moto is not installed; `make test-stores` does")
    s3fs = pytest.importorskip("s3fs", reason="NOT TESTED: s3fs is not installed; `make test-stores` does")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    started = server.ThreadedMotoServer(port=0, verbose=False)
    started.start()
    try:
        host, port = started.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
        s3fs.S3FileSystem().rm("bucket", recursive=True)
    finally:
        started.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["no logger", "CSVLogger", "TensorBoardLogger"])
def test_a_run_in_an_object_store(
    run: MakeRun, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = run(GradCAMCallback(LAYER, 4), detached(), max_epochs=2, **settings_of(kind, f"{bucket}/runs")).fit()
    assert_run(fit, bucket, tmp_path)
    cli.main(["report", bucket, "-o", f"{bucket}/report.html"])
    assert fsspec.open(f"{bucket}/report.html").fs.cat_file("bucket/report.html").startswith(b"<!doctype html>")


@pytest.mark.slow
def test_two_runs_in_an_object_store_have_folders_of_their_own(run: MakeRun, bucket: str) -> None:
    for _ in range(2):
        run(GradCAMCallback(LAYER, 4), max_epochs=1, **settings_of("no logger", f"{bucket}/runs")).fit()
    for number in (0, 1):
        assert len(read_run(f"{bucket}/runs/gradcam_logs/version_{number}")) == 1
