"""Packing takes one thread for each matrix product, and leaves the process as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np  # noqa: F401  brings its BLAS along
import pytest
import threadpoolctl
from models import base_model, fine_tune, write_model

from ddct_format import errors, pack
from ddct_format.pipeline.blas import one_blas_thread


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        if blas_threads() != {3}:
            pytest.skip("this BLAS has no number of threads to set")
        yield


def test_the_last_of_several_blocks_puts_it_back() -> None:
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    assert blas_threads() == {1}
    first.__exit__(None, None, None)
    assert blas_threads() == {1}
    second.__exit__(None, None, None)
    assert blas_threads() == {3}


def test_packing_is_such_a_block(tmp_path: Path) -> None:
    base = base_model()
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", fine_tune(base))
    found = []
    for name in ("first", "second"):
        pack(
            tmp_path / "base",
            tmp_path / "tuned",
            tmp_path / f"{name}.ddct",
            progress=lambda done, total, what: found.append(blas_threads()),
        )
    assert found and all(threads == {1} for threads in found)
    assert blas_threads() == {3}


def test_a_refusal_puts_it_back_too(tmp_path: Path) -> None:
    with pytest.raises(errors.CheckpointError):
        pack(tmp_path / "nothing", tmp_path / "nothing", tmp_path / "t.ddct")
    assert blas_threads() == {3}


def test_many_threads_pack_and_leave_no_trace() -> None:
    def enter_often() -> None:
        for _ in range(200):
            with one_blas_thread():
                pass

    threads = [threading.Thread(target=enter_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert blas_threads() == {3}
