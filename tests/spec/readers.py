"""The readers that must agree, behind one function each: archive and base in, what it makes of them out."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ddct_format.backends import get_backend
from ddct_format.checkpoint import Checkpoint, open_checkpoint
from ddct_format.container.digest import tensor_digest
from ddct_format.container.source import BytesSource
from ddct_format.errors import CorruptError, DdctError
from ddct_format.pipeline.archive import open_archive

__all__ = ["SPEC", "Outcome", "Reader", "build_c_reader", "c_reader", "ddct_reader", "load_module", "python_reader"]

SPEC = Path(__file__).parents[2] / "spec"

Outcome = Mapping[str, Any]
"""``status``, and where that is ``ok`` ``tensors``: the digest of each."""

Reader = Callable[[bytes, Path | None], Outcome]
"""Archive, and the base's safetensors file; the outcome."""


def load_module(path: Path) -> ModuleType:
    """A script as a module, its folder on the path as when it is run."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


_python = load_module(SPEC / "readers" / "python" / "ddct_reader.py")


def python_reader(archive: bytes, base: Path | None) -> Outcome:
    tensors = _python.read_safetensors(base.read_bytes()) if base else {}
    try:
        with _python.open_archive(archive) as opened:
            return {"status": "ok", "tensors": opened.verify(tensors)}
    except _python.DdctError as error:
        return {"status": _python.status_of(error), "reason": str(error)}


def ddct_reader(backend_name: str) -> Reader:
    """``ddct_format`` with one of its backends."""
    backend = get_backend(backend_name)

    def read(archive: bytes, base: Path | None) -> Outcome:
        try:
            checkpoint: Checkpoint | None = open_checkpoint(base) if base else None
            try:
                with open_archive(BytesSource(archive)) as opened:
                    if checkpoint is not None:
                        opened.check_base(checkpoint)
                    for file in opened.metadata.files:
                        if tensor_digest(opened.reader.file(file.path)) != file.digest:
                            raise CorruptError("digest of a side file")
                    tensors = {
                        name: tensor_digest(opened.decode(name, checkpoint, backend=backend)) for name in opened.tensors
                    }
                    return {"status": "ok", "tensors": tensors}
            finally:
                if checkpoint is not None:
                    checkpoint.close()
        except DdctError as error:
            return {"status": error.code, "reason": str(error)}

    return read


def build_c_reader(folder: Path) -> tuple[Path | None, str]:
    """The ``ddct-cat`` program, or the reason why there is none on this machine."""
    source = SPEC / "readers" / "c"
    if not (source / "Makefile").exists():
        return None, "spec/readers/c has no Makefile"
    if shutil.which("cc") is None or shutil.which("make") is None:
        return None, "no C compiler (cc) or no make"
    probe = subprocess.run(["cc", "-E", "-"], input="#include <zstd.h>\n", text=True, capture_output=True, check=False)
    if probe.returncode:
        return None, "no zstd.h"
    make = ["make", "-s", "-C", str(source), f"BUILD={folder}", "all"]
    made = subprocess.run(make, text=True, capture_output=True, check=False)
    assert made.returncode == 0, f"the C reader does not build:\n{made.stdout}{made.stderr}"
    return folder / "ddct-cat", ""


def c_reader(program: Path, folder: Path) -> Reader:
    def read(archive: bytes, base: Path | None) -> Outcome:
        path = folder / "archive.ddct"
        path.write_bytes(archive)
        command = [str(program), "conform", str(path), *([str(base)] if base else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode >= 0, f"killed by signal {-done.returncode}: {done.stderr}"
        outcome: Outcome = json.loads(done.stdout)
        return outcome

    return read
