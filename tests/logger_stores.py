"""What the services that a run is logged to have kept of it: read back from their own files."""

from __future__ import annotations

import importlib
import json
import re
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Stored:
    """What a service has of one run.

    Attributes:
        images: Of each name, the step and the bytes of each picture, in the order of writing.
        alerts: The texts of alerts, with their steps.
        report: The last report; empty where there is none.
        metrics: The name, the step and the value of each metric, in the order of writing.
        notifications: Titles of what is sent to the user.
    """

    images: dict[str, list[tuple[int, bytes]]]
    alerts: list[tuple[int, str]]
    report: str
    metrics: list[tuple[str, int, float]]
    notifications: tuple[str, ...] = ()

    def users_metrics(self) -> list[tuple[str, int, float]]:
        return [one for one in self.metrics if "gradcam" not in one[0] and "/global_step" not in one[0]]


# Weights & Biases


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: blocks of 32 KiB, with parts of records as in a log of LevelDB."""
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    content = file.read_bytes()
    assert content[:4] == b":W&B"
    position, whole = 7, b""
    while position < len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        position += 7 + size
        whole += content[position - size : position]
        if kind in (1, 4):  # all of it, or its last part
            yield messages.Record.FromString(whole)
            whole = b""


def read_wandb(folder: Path) -> Stored:
    """The one run that is below a folder."""
    [file] = folder.rglob("run-*.wandb")
    records = list(wandb_records(file))
    stored = Stored({}, [], "", [], tuple(record.alert.title for record in records if record.HasField("alert")))
    report = ""
    for record in records:
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        step = row.get("trainer/global_step")
        for key in {name.removesuffix("/path") for name in row if name.endswith("/path")}:
            content = (file.parent / "files" / row[f"{key}/path"]).read_bytes()
            if row[f"{key}/_type"] == "image-file":
                stored.images.setdefault(key, []).append((step, content))
            elif key == "gradcam/report":
                report = content.decode()
            else:
                stored.alerts.append((step, content.decode()))
        numbers = {name: value for name, value in row.items() if "/" not in name or name.startswith("gradcam/")}
        stored.metrics.extend(
            (name, step, value)
            for name, value in sorted(numbers.items())
            if isinstance(value, (int, float)) and name[0] != "_" and name.rpartition("/")[2] not in IMAGE_FIELDS
        )
    return Stored(stored.images, stored.alerts, report, stored.metrics, stored.notifications)


IMAGE_FIELDS = {"width", "height", "size"}


# MLflow


def read_mlflow(client: Any, run_id: str) -> Stored:
    """A run, read with a client of MLflow."""
    paths = sorted(_artifacts(client, run_id, ""), key=lambda path: re.split("[+%]timestamp[+%]", path)[-1])
    files = {path: Path(client.download_artifacts(run_id, path)).read_bytes() for path in paths}
    images: dict[str, list[tuple[int, bytes]]] = {}
    for path, content in files.items():
        if path.startswith("images/") and path.endswith(".png"):
            name, _, step, *_ = re.split("[+%]", path.removeprefix("images/"))
            images.setdefault(name, []).append((int(step), content))
    alerts = [
        (int(path.rpartition("/step-")[2].split()[0]), content.decode())
        for path, content in sorted(files.items())
        if path.startswith("gradcam/alerts/")
    ]
    metrics = [
        (name, one.step, one.value)
        for name in sorted(client.get_run(run_id).data.metrics)
        for one in client.get_metric_history(run_id, name)
    ]
    return Stored(images, alerts, files.get("gradcam/report.html", b"").decode(), metrics)


def _artifacts(client: Any, run_id: str, folder: str) -> Iterator[str]:
    for one in client.list_artifacts(run_id, folder):
        if one.is_dir:
            yield from _artifacts(client, run_id, one.path)
        else:
            yield one.path


# Comet


def read_comet(folder: Path) -> Stored:
    """The one archived offline experiment that is in a folder."""
    [file] = folder.glob("*.zip")
    with zipfile.ZipFile(file) as archive:
        messages = [json.loads(line) for line in archive.read("messages.json").decode().splitlines()]
        stored, report = Stored({}, [], "", []), ""
        for message in messages:
            payload = message["payload"]
            if message["type"] == "metric_msg" and not payload["metric"]["metricName"].startswith("sys."):
                metric = payload["metric"]
                stored.metrics.append((metric["metricName"], metric["step"], metric["metricValue"]))
            if message["type"] != "file_upload":
                continue
            told, content = payload["additional_params"], archive.read(payload["file_path"])
            if payload["upload_type"] == "visualization":
                stored.images.setdefault(told["figName"], []).append((told["step"], content))
            elif payload["upload_type"] == "text-sample":
                stored.alerts.append((told["step"], content.decode()))
            elif told.get("fileName") == "gradcam/report.html":
                report = content.decode()
    return Stored(stored.images, stored.alerts, report, stored.metrics)
