"""What the tab asks for: its own files, the runs that have a recording, and the recording of a run."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import mimetypes
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeVar

from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.context import RequestContext
from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from gradcam_callback.recording.event_files import StoredRecord
from gradcam_callback.viewer.report import WEB

PLUGIN = "gradcam"
ENTRY = "/web/tab.js"
_KEPT_BUNDLES = 4  # as many runs as the viewer shows side by side
_ALL = 1 << 31  # records; the data provider asks for a number

Answer = TypeVar("Answer", bound=Callable[..., Any])
_LOG = logging.getLogger("gradcam_callback")


def _answered(method: Answer) -> Any:
    """Whatever goes wrong in it is an answer with a reason."""

    @functools.wraps(method)
    def guarded(self: GradCAMPlugin, environ: Any, start_response: Any) -> Any:
        request = wrappers.Request(environ)
        try:
            response = method(self, request)
        except errors.PublicError as error:
            response = _refusal(request, str(error), error.http_code)
        except Exception as error:
            _LOG.exception("The Grad-CAM tab could not be answered")
            response = _refusal(request, f"This could not be read: {type(error).__name__}: {error}", 500)
        return response(environ, start_response)

    return guarded


def _respond(request: wrappers.Request, content: Any, kind: str, code: int = 200) -> wrappers.Response:
    response: wrappers.Response = http_util.Respond(request, content, kind, code=code)
    return response


def _refusal(request: wrappers.Request, reason: str, code: int) -> wrappers.Response:
    return _respond(request, {"error": reason}, "application/json", code)


class GradCAMPlugin(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
    """The plugin.

    Args:
        context: Of TensorBoard. Its data provider hides which of the two loaders reads the event files.
    """

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider
        self._lock = threading.Lock()
        self._bundles: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._files = {path.relative_to(WEB).as_posix(): path for path in WEB.rglob("*") if path.is_file()}

    def get_plugin_apps(self) -> dict[str, Any]:
        """The routes, below `data/plugin/gradcam`."""
        return {"/runs": self._serve_runs, "/bundle": self._serve_bundle, "/web/*": self._serve_file}

    def is_active(self) -> bool:
        """Whether any run has a recording; asked often, and without a request."""
        try:
            ctx = RequestContext()
            return bool(self._provider.list_tensors(ctx, experiment_id="", plugin_name=PLUGIN))
        except Exception:  # it is asked again
            return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """What TensorBoard shows of the plugin, and where its front end is."""
        return base_plugin.FrontendMetadata(es_module_path=ENTRY, tab_name="Grad-CAM", disable_reload=False)

    @_answered
    def _serve_file(self, request: wrappers.Request) -> wrappers.Response:
        """A file of the front end."""
        name = request.path.partition(f"/plugin/{PLUGIN}/web/")[2]
        path = self._files.get(str(PurePosixPath(name)))
        if path is None:
            raise errors.NotFoundError(f"The viewer has no file {name!r}.")
        kind = "text/javascript" if path.suffix == ".js" else mimetypes.guess_type(path.name)[0]
        return _respond(request, path.read_bytes(), kind or "application/octet-stream")

    @_answered
    def _serve_runs(self, request: wrappers.Request) -> wrappers.Response:
        """The runs with a recording: a version of each that changes with it, and when it was last written to."""
        series = self._list(request)
        runs = [{"name": run, "version": _version(series[run]), "time": _time(series[run])} for run in sorted(series)]
        return _respond(request, {"runs": runs, "notes": []}, "application/json")

    @_answered
    def _serve_bundle(self, request: wrappers.Request) -> wrappers.Response:
        """The recording of a run."""
        run = request.args.get("run")
        if run is None:
            raise errors.InvalidArgumentError("Say which run with `run`.")
        series = self._list(request, run)
        if run not in series:
            raise errors.NotFoundError(f"There is no recording of the run {run!r}.")
        with self._lock:  # TensorBoard answers in several threads, and one bundle at a time takes memory enough
            content = self._bundle(request, run, _version(series[run]))
        return _respond(request, content, "application/octet-stream")

    def _bundle(self, request: wrappers.Request, run: str, version: str) -> bytes:
        """What was made of this version of the run, or is made now."""
        key = run, version
        if key not in self._bundles:
            content = self._make_bundle(request, run)
            for old in [known for known in self._bundles if known[0] == run]:
                del self._bundles[old]
            self._bundles[key] = content
            while len(self._bundles) > _KEPT_BUNDLES:
                self._bundles.popitem(last=False)
        self._bundles.move_to_end(key)
        return self._bundles[key]

    def _list(self, request: wrappers.Request, run: str | None = None) -> Mapping[str, Mapping[str, Any]]:
        """What is known of the records of each run, by tag."""
        series: Mapping[str, Mapping[str, Any]] = self._provider.list_tensors(**self._query(request, run))
        return series

    def _make_bundle(self, request: wrappers.Request, run: str) -> bytes:
        from gradcam_callback.recording.assembly import assemble, together
        from gradcam_callback.recording.bundle import bundle
        from gradcam_callback.recording.reading import decode

        records, problems = decode(self._stored(request, run))
        recordings = assemble(run, records, problems)
        if not recordings:
            raise errors.NotFoundError(" ".join([f"No record of the run {run!r} could be read.", *problems[:3]]))
        return bundle(together(recordings))

    def _stored(self, request: wrappers.Request, run: str) -> Iterator[StoredRecord]:
        """The records of a run, and what TensorBoard itself cannot read; at one such tag it fails at all of them."""
        try:
            tags = self._provider.read_tensors(downsample=_ALL, **self._query(request, run)).get(run, {})
        except Exception:
            tags = self._provider.list_tensors(**self._query(request, run)).get(run, {})
            for tag in tags:
                try:
                    query = self._query(request, run, tag)
                    data = self._provider.read_tensors(downsample=_ALL, **query).get(run, {}).get(tag, [])
                except Exception as error:
                    yield StoredRecord(tag, problem=f"{type(error).__name__}: {error}")
                else:
                    yield from (_stored_record(tag, datum) for datum in data)
        else:
            yield from (_stored_record(tag, datum) for tag, data in tags.items() for datum in data)

    def _query(self, request: wrappers.Request, run: str | None, tag: str | None = None) -> dict[str, Any]:
        return {
            "ctx": plugin_util.context(request.environ),
            "experiment_id": plugin_util.experiment_id(request.environ),
            "plugin_name": PLUGIN,
            "run_tag_filter": None if run is None else RunTagFilter([run], None if tag is None else [tag]),
        }


def _time(tags: Mapping[str, Any]) -> float:
    """When the last record was written, in seconds since 1970."""
    return max(float(series.max_wall_time) for series in tags.values())


def _stored_record(tag: str, datum: Any) -> StoredRecord:
    place, values = f"{tag}, step {datum.step}", datum.numpy.reshape(-1)
    # Of anything else than bytes `bytes` would make some.
    if len(values) != 1 or not isinstance(values[0], bytes):
        return StoredRecord(place, problem="its tensor holds no bytes")
    return StoredRecord(place, values[0])


def _version(tags: Mapping[str, Any]) -> str:
    ends = sorted((tag, series.max_step, series.max_wall_time) for tag, series in tags.items())
    return hashlib.sha256(json.dumps(ends).encode()).hexdigest()[:16]
