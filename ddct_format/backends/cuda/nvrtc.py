"""CUDA C++ compiled at run time, by the NVRTC that torch brings along, and kept in the user's cache directory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

__all__ = ["Kernels", "NvrtcError", "find_nvrtc", "load_kernels"]

_NO_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY"""
_OLDEST = (8, 0)
"""Compute capability from which the kernels' matrix instructions exist."""
_STATIC_SHARED = 16 << 10
"""Bytes that kernels with shared memory of a size given at launch may hold besides."""
_MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"""
_MOST_SHARED = 97
"""CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"""


class NvrtcError(RuntimeError):
    """A kernel could not be compiled, loaded or started."""


class Kernels:
    """A loaded module: its functions can be launched."""

    def __init__(self, image: bytes) -> None:
        self._image = image  # the driver may read it later
        self._module = ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(self._module), image), "loading kernels")
        self._functions: dict[str, ctypes.c_void_p] = {}

    def launch(self, name: str, blocks: int, threads: int, argument: ctypes.Structure, shared: int = 0) -> None:
        """Start ``name`` on torch's current stream, on the current device, with one argument by value."""
        if not blocks:
            return
        function = self._functions.get(name) or self._find(name, shared)
        address = ctypes.c_void_p(ctypes.addressof(argument))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = _driver().cuLaunchKernel(
            function, blocks, 1, 1, threads, 1, 1, shared, stream, ctypes.byref(address), None
        )
        _check(status, name)

    def _find(self, name: str, shared: int) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        _check(_driver().cuModuleGetFunction(ctypes.byref(function), self._module, name.encode()), name)
        if shared:
            _check(_driver().cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, _dynamic_limit() - _STATIC_SHARED), name)
        self._functions[name] = function
        return function


_lock = threading.Lock()
_loaded: dict[tuple[int, str, tuple[str, ...]], Kernels] = {}


def find_nvrtc(device: torch.device) -> bool:
    """Whether kernels in CUDA C++ can be compiled for this device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _OLDEST and _library() is not None


def load_kernels(source: str, options: Sequence[str], device: torch.device) -> Kernels:
    """Compile ``source``, or take it from the cache, and load it on ``device``, the current one.

    Raises:
        NvrtcError: it does not compile, or the driver refuses it.
    """
    assert device.index is not None
    key = (device.index, source, tuple(options))
    with _lock:
        if key not in _loaded:
            architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
            every = [f"--gpu-architecture={architecture}", *options]
            _loaded[key] = Kernels(_compiled(source, every))
        return _loaded[key]


def _compiled(source: str, options: Sequence[str]) -> bytes:
    version = (ctypes.c_int(), ctypes.c_int())
    library = _library()
    if library is None:
        raise NvrtcError("the library nvrtc is not installed")
    library.nvrtcVersion(ctypes.byref(version[0]), ctypes.byref(version[1]))
    identity = "\0".join([source, *options, str(version[0].value), str(version[1].value)])
    path = _cache_folder() / f"{hashlib.sha256(identity.encode()).hexdigest()}.cubin"
    try:
        digest, image = (stored := path.read_bytes())[:32], stored[32:]
        if hashlib.sha256(image).digest() == digest:  # the driver crashes on a damaged one
            return image
    except OSError:
        pass
    image = _compile(library, source, options)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(image).digest() + image)
        Path(file.name).replace(path)
    except OSError:  # a cache is a convenience
        pass
    return image


def _compile(library: ctypes.CDLL, source: str, options: Sequence[str]) -> bytes:
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"ddct.cu", 0, None, None), "nvrtc")
    try:
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), arguments)
        size = ctypes.c_size_t()
        if status:
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            library.nvrtcGetProgramLog(program, log)
            raise NvrtcError(f"kernels do not compile: {log.value.decode(errors='replace')}")
        _check(library.nvrtcGetCUBINSize(program, ctypes.byref(size)), "nvrtc")
        image = ctypes.create_string_buffer(size.value)
        _check(library.nvrtcGetCUBIN(program, image), "nvrtc")
        return image.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddct" / "kernels"


@cache
def _library() -> ctypes.CDLL | None:
    major = (torch.version.cuda or "").partition(".")[0]
    name = f"libnvrtc.so.{major}"
    folders = [Path(entry) / "nvidia" for entry in sys.path if entry]
    packaged = [path for folder in folders for path in (folder / f"cu{major}" / "lib", folder / "cuda_nvrtc" / "lib")]
    for candidate in [name, *(str(folder / name) for folder in packaged if (folder / name).exists())]:
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    return None


def _dynamic_limit() -> int:
    device, limit = ctypes.c_int(), ctypes.c_int()
    _check(_driver().cuCtxGetDevice(ctypes.byref(device)), "the current device")
    _check(_driver().cuDeviceGetAttribute(ctypes.byref(limit), _MOST_SHARED, device), "shared memory")
    return limit.value


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(status: int, what: str) -> None:
    if status:
        raise NvrtcError(f"{what}: " + ("out of memory" if status == _NO_MEMORY else f"error {status} of CUDA"))
