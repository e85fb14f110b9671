"""Reports: the numbers are those of the models, the page is one file that is safe to open."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_pair import HOSTILE
from safetensors.torch import load_file, save_file

from ddct_format import errors, open_archive, pack, unpack
from ddct_format.codec.dctq import DctqParams, split_payload
from ddct_format.report.archive_report import ArchiveReport, report_archive
from ddct_format.report.importance import encode_png, importance_map
from ddct_format.report.page import page_pieces

MARKUP = "</title><img src=https://example.org/x onerror=alert(1)>"


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and text by the tag that it stands in."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags are closed in order"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def archive(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "t.ddct"
    pack(pair / "base", pair / "tuned", path, bits=4, base_hint={"repo": MARKUP})
    return path


@pytest.fixture(scope="module")
def report(pair: Path, archive: Path) -> ArchiveReport:
    return report_archive(archive, pair / "base", pair / "tuned")


def changes(model: Path, base: Path) -> dict[str, np.ndarray[Any, Any]]:
    before, after = load_file(base / "model.safetensors"), load_file(model / "model.safetensors")
    return {
        name: (tensor.double() - before[name].double()).numpy().reshape(-1)
        for name, tensor in after.items()
        if name in before and tensor.is_floating_point()
    }


def test_the_numbers_are_those_of_the_models(pair: Path, archive: Path, report: ArchiveReport, tmp_path: Path) -> None:
    unpack(archive, pair / "base", tmp_path / "out")
    true, decoded = changes(pair / "tuned", pair / "base"), changes(tmp_path / "out", pair / "base")
    tensors = {tensor.name: tensor for tensor in report.tensors}
    assert set(tensors) == set(load_file(pair / "tuned" / "model.safetensors"))
    cases = [(tensors[name].original, true[name]) for name in true]
    cases += [(tensors[name].decoded, decoded[name]) for name in decoded]
    cases += [(report.original, np.concatenate(list(true.values())))]
    cases += [(report.decoded, np.concatenate(list(decoded.values())))]
    for found, values in cases:
        assert found is not None
        variance = values.var()
        assert found.count == values.size
        assert found.variance == pytest.approx(variance, rel=1e-9)
        if variance == 0:
            assert found.skewness is None and found.kurtosis is None
            continue
        deviations = values - values.mean()
        assert found.skewness == pytest.approx(float((deviations**3).mean() / variance**1.5), rel=1e-6, abs=1e-9)
        assert found.kurtosis == pytest.approx(float((deviations**4).mean() / variance**2 - 3), rel=1e-6, abs=1e-9)
        if found.histogram:
            inside = np.count_nonzero(np.abs(values) <= found.reach)
            assert sum(found.histogram) == pytest.approx(inside, rel=0.02)
    for name in true:
        t, d = true[name], decoded[name]
        if t.any():
            assert tensors[name].measured_error == pytest.approx(float(((t - d) ** 2).sum() / (t**2).sum()), rel=1e-9)
            assert tensors[name].cosine == pytest.approx(float(t @ d / np.sqrt((t @ t) * (d @ d))), rel=1e-9)
    t, d = (np.concatenate(list(model.values())) for model in (true, decoded))
    assert report.measured_error == pytest.approx(float(((t - d) ** 2).sum() / (t**2).sum()), rel=1e-9)
    for name in ("steps", "wide.weight", "same.weight"):
        assert tensors[name].measured_error is None
    assert report.against_is_packed is True


def test_every_byte_of_the_file_is_accounted_for(archive: Path, report: ArchiveReport) -> None:
    assert sum(report.parts.values()) == pytest.approx(archive.stat().st_size)
    with open_archive(archive) as opened:
        for tensor in report.tensors:
            assert tensor.stored == opened.reader.stored_size(tensor.name)
            assert sum(tensor.parts.values()) == pytest.approx(tensor.stored)
        assert report.parts["metadata"] == 64 + opened.reader.preamble.metadata_stored_size
    assert {"symbols", "low rank", "class maps", "scales", "carried", "files"} <= set(report.parts)


def test_exact_archives_show_their_layer(pair: Path, tmp_path: Path) -> None:
    pack(pair / "base", pair / "tuned", tmp_path / "t.ddct", preset="paper", exact=True)
    found = report_archive(tmp_path / "t.ddct", pair / "base", pair / "tuned")
    assert found.lossless and found.measured_error == 0
    assert found.parts["exact"] > found.parts["symbols"] > 0
    lossy = report_archive(tmp_path / "t.ddct", pair / "base", pair / "tuned", lossy=True)
    assert not lossy.lossless and lossy.target_id != found.target_id and lossy.parts == found.parts
    unpack(tmp_path / "t.ddct", pair / "base", tmp_path / "out", lossy=True)
    true, decoded = (
        np.concatenate(list(changes(m, pair / "base").values())) for m in (pair / "tuned", tmp_path / "out")
    )
    assert lossy.measured_error == pytest.approx(float(((true - decoded) ** 2).sum() / (true**2).sum()), rel=1e-9)
    assert sum(found.parts.values()) == pytest.approx(found.file_size)


def test_importance_is_shown_where_the_weights_are(tmp_path: Path) -> None:
    """Weight by weight: which patch it lies in once rows and columns are sorted, and what that patch's class costs."""
    random = torch.Generator().manual_seed(0)
    rows, cols = (torch.exp(1.5 * torch.randn(size, generator=random)) for size in (330, 250))
    change = torch.randn(330, 250, generator=random) * rows[:, None] * cols
    save_file({"w": torch.zeros(330, 250)}, tmp_path / "base.safetensors")
    save_file({"w": change}, tmp_path / "tuned.safetensors")
    pack(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "t.ddct", bits=2)
    with open_archive(tmp_path / "t.ddct") as archive:
        record = archive.tensors["w"]
        params = DctqParams.parse(record.layers[0].params, record.elements)
        stored = split_payload(params, np.frombuffer(archive.reader.payload("w", 0), dtype=np.uint8))
    assert params.row_keys and params.col_keys and len(params.levels) > 1
    bits = [float(number + 1) for number in range(len(params.levels))]
    shown = importance_map(params, stored, bits, 330)
    grid = params.grid
    class_map = stored.section("class_map").reshape(grid.down, grid.across)
    keys = (stored.section("row_keys"), stored.section("col_keys"))
    row_place, col_place = (np.argsort(np.argsort(key, kind="stable")) for key in keys)
    assert np.array_equal(shown, class_map[np.ix_(row_place // grid.patch, col_place // grid.patch)] + 1)
    small = importance_map(params, stored, bits, 10)
    assert small.shape == (10, 10)
    assert small == pytest.approx(shown.reshape(10, 33, 10, 25).mean(axis=(1, 3)))


def test_pictures_are_png(report: ArchiveReport) -> None:
    values = np.arange(12.0).reshape(3, 4)
    image = encode_png(values, 11.0)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    chunks: dict[bytes, bytes] = {}
    position = 8
    while position < len(image):
        size = int.from_bytes(image[position : position + 4], "big")
        kind, data = image[position + 4 : position + 8], image[position + 8 : position + 8 + size]
        assert int.from_bytes(image[position + 8 + size : position + 12 + size], "big") == zlib.crc32(kind + data)
        chunks[kind] = data
        position += 12 + size
    assert chunks[b"IHDR"] == bytes([0, 0, 0, 4, 0, 0, 0, 3, 8, 3, 0, 0, 0])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(3, 5)
    assert not lines[:, 0].any() and np.array_equal(lines[:, 1:], np.rint(values * 255 / 11))
    assert len(chunks[b"PLTE"]) == 768


def test_the_page_is_one_file_that_loads_nothing(report: ArchiveReport) -> None:
    page = Page("".join(page_pieces(report)))
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "a", "audio", "video")
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/png;base64,"), attributes
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{}]
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")
    style = "".join(re.findall(r"<style>(.*?)</style>", "".join(page_pieces(report)), re.DOTALL))
    assert "url(" not in style and "@import" not in style


def test_the_page_escapes_names_and_shows_the_numbers(report: ArchiveReport) -> None:
    text = "".join(page_pieces(report))
    page = Page(text)
    assert "<script>alert" not in text and MARKUP not in text
    assert HOSTILE in page.text and MARKUP in page.text
    rows = {row[0]: row for row in page.rows}
    heads = next(row for row in page.rows if row[0] == "tensor")
    for tensor in report.tensors:
        row = dict(zip(heads, rows[tensor.name], strict=True))
        assert row["op"] == tensor.op and row["stored bytes"] == f"{tensor.stored:,}"
        for head, value in (
            ("bits per weight", tensor.bits_per_weight),
            ("error", tensor.measured_error),
            ("variance, original", tensor.original and tensor.original.variance),
            ("kurtosis, decoded", tensor.decoded and tensor.decoded.kurtosis),
        ):
            assert (row[head] == "") == (value is None)
            if value is not None:
                assert float(row[head].replace("−", "-")) == pytest.approx(value, rel=1e-3, abs=1e-12)
    images = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(images) == sum(tensor.importance is not None for tensor in report.tensors) >= 2
    for source in images:
        assert source is not None and base64.b64decode(source.split(",")[1]).startswith(b"\x89PNG")


def test_only_the_largest_tensors_are_drawn(pair: Path, archive: Path) -> None:
    for largest in (0, 1):
        found = report_archive(archive, pair / "base", largest=largest)
        drawn = [tensor.name for tensor in found.tensors if tensor.importance is not None]
        assert drawn == [HOSTILE][:largest]
        assert found.original is None and found.against_is_packed is None
        assert Page("".join(page_pieces(found))).open == []


def test_another_model_is_said_to_be_one(pair: Path, archive: Path, tmp_path: Path) -> None:
    tensors = load_file(pair / "tuned" / "model.safetensors")
    tensors["a.weight"] = tensors["a.weight"] * 2
    tensors["norm.weight"][3] = float("nan")
    (tmp_path / "other").mkdir()
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    found = report_archive(archive, pair / "base", tmp_path / "other")
    assert found.against_is_packed is False
    assert {t.name: t.not_finite for t in found.tensors if t.not_finite} == {"norm.weight": 1}
    assert "not the fine-tune that was packed" in "".join(Page("".join(page_pieces(found))).text)
    del tensors["a.weight"]
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    with pytest.raises(errors.CheckpointError, match="lacks it") as caught:
        report_archive(archive, pair / "base", tmp_path / "other")
    assert caught.value.tensor == "a.weight"


def test_the_command_writes_a_page_once(pair: Path, archive: Path, tmp_path: Path) -> None:
    shutil.copy(archive, tmp_path / "m.ddct")

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ddct_format", "report", str(tmp_path / "m.ddct"), *map(str, options)]
        command += ["--device", "reference"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    numbers = run("--base", pair / "base", "--against", pair / "tuned", "--json")
    assert numbers.returncode == 0 and numbers.stderr == ""
    parsed = json.loads(numbers.stdout)
    assert len(parsed["tensors"]) == 8 and "importance" not in parsed["tensors"][0]
    assert sum(parsed["parts"].values()) == pytest.approx(parsed["file_size"])
    assert [path.name for path in tmp_path.iterdir()] == ["m.ddct"], "with --json a page must be asked for"
    assert run("--base", pair / "base").returncode == 0
    assert (tmp_path / "m.ddct.html").read_text().startswith("<!doctype html>")
    before = (tmp_path / "m.ddct.html").read_bytes()
    refused = run("--base", pair / "base")
    assert refused.returncode == 8 and refused.stderr.count("\n") == 1
    assert run("--base", pair / "base", "--out", tmp_path / "absent" / "x.html").returncode == 10
    assert run("--base", pair / "tuned", "--out", tmp_path / "x.html").returncode == 6
    assert (tmp_path / "m.ddct.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.ddct", "m.ddct.html"]


def test_the_numbers_do_not_depend_on_memory_or_threads(pair: Path, archive: Path, report: ArchiveReport) -> None:
    """With 32 KiB to a tensor, the larger matrix is decoded into a mapped file and measured there."""
    small = report_archive(archive, pair / "base", pair / "tuned", threads=8, memory=1 << 20)
    assert small.as_dict() == report.as_dict()
