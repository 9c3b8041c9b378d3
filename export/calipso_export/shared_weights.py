"""Lets a second graph use the weights of a first: its initializers refer to the bytes in that one's file.

ONNX keeps large tensors outside a graph by file, offset and length. The file may be another graph:
its tensors lie in it byte by byte. An engine maps them into memory, and the disk holds them once.
"""

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import external_data_helper

# Smaller tensors are copied: a reference takes as much room.
_MIN_BYTES = 1024
_PROBE_BYTES = 256


def refer_to(graph: ir.Graph, path: Path) -> None:
    """Turn every initializer of at least a kilobyte whose bytes lie in a written graph into a reference.

    Args:
        graph: changed in place; the values stay the same.
        path: the graph that was written, with its external data beside it where it has any.
    """
    places = {digest: (name, offset) for digest, name, offset in _places(path)}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < _MIN_BYTES or value.name is None:
            continue
        found = places.get(_digest(tensor.tobytes()))
        if found is not None:
            name, offset = found
            value.const_value = ir.ExternalTensor(
                name,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name,
                base_dir=path.parent,
            )


def _places(path: Path) -> Iterator[tuple[bytes, str, int]]:
    """Of every large tensor of a written graph: digest of its bytes, file and offset."""
    model = onnx.load(path, load_external_data=False)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = 0
        for tensor in model.graph.initializer:
            if external_data_helper.uses_external_data(tensor):
                info = external_data_helper.ExternalDataInfo(tensor)
                name, offset, length = info.location, int(info.offset or 0), int(info.length or 0)
                data = np.memmap(path.parent / name, np.uint8, "r", offset, (length,))
                yield _digest(data.data), name, offset
            elif len(tensor.raw_data) >= _MIN_BYTES:
                position = _find(content, tensor.raw_data, position)
                yield _digest(tensor.raw_data), path.name, position


def _find(content: mmap.mmap, needle: bytes, start: int) -> int:
    """Where bytes lie. Tensors are serialised in order, so each is looked for behind the one before."""
    probe = needle[:_PROBE_BYTES]
    at = content.find(probe, start)
    while at >= 0:
        if content[at : at + len(needle)] == needle:
            return at
        at = content.find(probe, at + 1)
    message = "a tensor of the graph is not in its own file"
    raise ValueError(message)


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).digest()
