"""Makers of safetensors files that use the safetensors library itself, not the product."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from safetensors import TensorSpec, serialize

Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]

NAMES_IN_LIBRARY = {
    **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn"},
    **{"F8_E8M0": "float8_e8m0fnu", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16"},
    **{"I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64"},
    **{"C64": "complex64", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}


def serialize_with_library(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    buffers = {name: ctypes.create_string_buffer(data, len(data)) for name, (_, _, data) in tensors.items()}
    specs = {
        name: TensorSpec(
            dtype=NAMES_IN_LIBRARY[dtype],
            shape=shape,
            data_ptr=ctypes.addressof(buffers[name]),
            data_len=len(data),
        )
        for name, (dtype, shape, data) in tensors.items()
    }
    return bytes(serialize(specs, dict(metadata) if metadata else None))


@pytest.fixture(scope="session")
def library_bytes() -> Callable[..., bytes]:
    """`(tensors, metadata=None) -> bytes`: what safetensors' own serializer makes of them."""
    return serialize_with_library


@pytest.fixture
def make_file() -> Callable[..., Path]:
    """`(path, *names)`: write a safetensors file with one small F32 tensor of each name."""

    def make(path: Path, *names: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: ("F32", (2,), struct.pack("<2f", index, -1.0)) for index, name in enumerate(names)}
        path.write_bytes(serialize_with_library(tensors, {"format": "pt"}))
        return path

    return make


@pytest.fixture
def make_index() -> Callable[[Path, object], Path]:
    """`(directory, weight_map)`: write `model.safetensors.index.json`."""

    def make(directory: Path, weight_map: object) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
        return path

    return make


@pytest.fixture
def header_file(tmp_path: Path) -> Callable[[str, int], Path]:
    """`(header, data_size)`: a safetensors file with exactly this header text, and zeros as data."""

    def make(header: str, data_size: int) -> Path:
        raw = header.encode()
        path = tmp_path / "handmade.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data_size))
        return path

    return make


@pytest.fixture
def unprivileged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], AbstractContextManager[None]]:
    """`with unprivileged(directory)`: work in the directory, without root's right to read everything."""

    @contextmanager
    def drop(directory: Path) -> Iterator[None]:
        # The path down to the directory may be closed to others; the directory itself must not be.
        directory.chmod(directory.stat().st_mode | 0o055)
        monkeypatch.chdir(directory)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)

    return drop


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`(script, *arguments)`: start a real process that can import the product; killed at the end."""
    started = []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def start(script: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
