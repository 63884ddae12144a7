"""Records as TensorBoard's protocol buffers hold them: one tensor of bytes a record, of the plugin `gradcam`."""

from __future__ import annotations

import json

from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING

from gradcam_callback.recording.payload import VERSION, UnreadableError
from gradcam_callback.recording.records import Look, Record, to_bytes

PLUGIN = "gradcam"


class RecordTags:
    """The tags of records. Of two records with one tag and one step TensorBoard may show only the last.

    So a second record at a step gets a tag of its own: `gradcam/recording`, `gradcam/recording/2`, ...
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}

    def tag(self, prefix: str, kind: str, step: int) -> str:
        """Of a record that is about to be written.

        Args:
            prefix: The tag of the callback's looks.
            kind: "look", "probes" or "alerts".
            step: `trainer.global_step`.
        """
        name = prefix if kind == Look.KIND else f"{prefix}/{kind}"
        last, count = self._last.get(name, (None, 0))
        count = count + 1 if step == last else 1
        self._last[name] = step, count
        return name + (f"/{count}" if count > 1 else "")


def summary_of(tag: str, record: Record) -> Summary:
    """A record as a summary."""
    content = json.dumps({"schema": VERSION, "kind": record.KIND}).encode()
    data = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=content)
    # Without a data class TensorBoard would not show it to the plugin.
    metadata = SummaryMetadata(plugin_data=data, data_class=DATA_CLASS_TENSOR)
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[to_bytes(record)])
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def payload_of(value: Summary.Value) -> bytes:
    """The bytes of a record.

    Raises:
        UnreadableError: The tensor holds something else.
    """
    if len(value.tensor.string_val) != 1:
        raise UnreadableError("its tensor holds no bytes")
    return bytes(value.tensor.string_val[0])
