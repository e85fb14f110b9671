"""Sweeps: every row is a real archive, its numbers those that anyone would compute from what it decodes to."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddct_format import errors, open_archive, unpack
from ddct_format.encode.presets import PRESETS
from ddct_format.pipeline.guard import Evaluation
from ddct_format.report import plot
from ddct_format.report.schemes import GROUPS, choose_schemes
from ddct_format.report.sweep import SweepReport, sweep


def changes(pair: Path, decoded: Path, names: set[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """True and decoded changes of floating-point tensors that the base has, in one vector each."""
    base, true, found = (load_file(path / "model.safetensors") for path in (pair / "base", pair / "tuned", decoded))
    names = {n for n in names if n in base and base[n].is_floating_point()}
    vectors = [
        torch.cat([(model[n].double() - base[n].double()).flatten() for n in sorted(names)]) for model in (true, found)
    ]
    return vectors[0], vectors[1]


@pytest.fixture(scope="module")
def swept(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepReport, Path]:
    """Transforms at 3 bits and the paper's presets, with archives."""
    archives = tmp_path_factory.mktemp("sweep") / "archives"
    schemes = [s for s in choose_schemes(["presets", "transform"], [3.0]) if s.family == "paper" or s.preset.bits == 3]
    return sweep(pair / "base", pair / "tuned", schemes, archives=archives), archives


def test_the_numbers_are_those_of_the_archives(pair: Path, swept: tuple[SweepReport, Path], tmp_path: Path) -> None:
    report, archives = swept
    assert [row.scheme for row in report.rows] == [
        "paper",
        "paper-mix",
        "3 bits",
        "3 bits, no transform",
        "3 bits, Hadamard",
    ]
    assert len(list(archives.iterdir())) == 5
    for number, row in enumerate(report.rows):
        assert row.archive is not None and row.problem is None and row.seconds is not None and row.seconds > 0
        unpack(row.archive, pair / "base", tmp_path / str(number))
        true, found = changes(pair, tmp_path / str(number), set(load_file(pair / "tuned" / "model.safetensors")))
        assert row.error == pytest.approx(float((true - found).square().sum() / true.square().sum()), rel=1e-9)
        assert row.cosine == pytest.approx(float(torch.cosine_similarity(true, found, dim=0)), rel=1e-9)
        assert row.file_size == Path(row.archive).stat().st_size
        with open_archive(row.archive) as archive:
            sides = sum(file.size for file in archive.metadata.files)
            assert row.bits_per_weight == pytest.approx(8 * (row.file_size - sides - 8) / report.parameters, rel=1e-3)
            params = archive.tensors["a.weight"].layers[0].params
        assert params["transform"] == row.settings["transform"] and params["patch"] == row.settings["patch"]


def test_every_group_changes_one_thing_and_brings_what_it_is_compared_with() -> None:
    for group in GROUPS:
        schemes = choose_schemes([group], [0.5])
        assert len({scheme.name for scheme in schemes}) == len(schemes)
        assert any(not scheme.variant for scheme in schemes), group
        for scheme in schemes:
            assert len(json.dumps(scheme.settings())) > 2
    everything = choose_schemes()
    assert {s.name for s in everything} > set(PRESETS)
    assert len({json.dumps(s.settings()) for s in everything}) == len(everything)
    assert not [s for s in everything if s.name == "1 bits"], "the preset balanced is the same"
    for bad in (["nonsense"], [0.0], [float("nan")]):
        with pytest.raises(errors.ConfigError):
            choose_schemes(bad) if isinstance(bad[0], str) else choose_schemes(["gain"], bad)  # type: ignore[arg-type]


def test_what_one_scheme_cannot_do_is_a_row_and_not_the_end(pair: Path) -> None:
    schemes = [*choose_schemes(["transform"], [0.01])[:1], *choose_schemes(["allocation"])[:1]]
    failed, worked = sweep(pair / "base", pair / "tuned", schemes).rows
    assert failed.problem is not None and "cannot be met" in failed.problem and failed.error is None
    assert worked.problem is None and worked.error is not None
    with pytest.raises(errors.ConfigError, match="no scheme could be packed"):
        sweep(pair / "base", pair / "tuned", schemes[:1])


COUNT = """
import json, sys

def load(directory):
    data = open(directory + "/model.safetensors", "rb").read()
    start = 8 + int.from_bytes(data[:8], "little")
    places = {name: item["data_offsets"] for name, item in json.loads(data[8:start]).items() if "dtype" in item}
    return {name: data[start + begin : start + end] for name, (begin, end) in places.items()}

tuned, model = map(load, sys.argv[1:3])
print("differ:", sum(model[name] != tuned[name] for name in model))
"""


def test_a_metric_is_measured_on_whole_models_with_the_swept_tensors_decoded(pair: Path, little_memory: int) -> None:
    command = shlex.join([sys.executable, "-c", COUNT, str(pair / "tuned")]) + " {}"
    schemes = choose_schemes(["allocation"])[:1]
    for patterns, count, differ in ((("a.*",), 1, 1), (("a.*", "*script*"), 2, 2), ((), 8, 2 + 1)):
        report = sweep(
            pair / "base",
            pair / "tuned",
            schemes,
            tensors=patterns,
            evaluation=Evaluation(command),
            threads=8,
            memory=little_memory,  # 32 KiB to a tensor: the larger matrix goes through a mapped file
        )
        assert report.tensors == count
        assert report.finetuned_metric == 0 and report.base_metric == 4
        assert report.rows[0].metric == differ
    with pytest.raises(errors.ConfigError, match="no tensor matches"):
        sweep(pair / "base", pair / "tuned", schemes, tensors=["b.*"])
    with pytest.raises(errors.QualityError, match="status 3") as caught:
        sweep(pair / "base", pair / "tuned", schemes, evaluation=Evaluation(f"{sys.executable} -c 'exit(3)'"))
    assert caught.value.place == str(pair / "tuned")


def test_plots_are_drawn_as_svg_and_png(swept: tuple[SweepReport, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install 'ddct[sweep]'")
    report, _ = swept
    plot.draw_plot(report, tmp_path / "p.svg")
    drawing = ElementTree.parse(tmp_path / "p.svg").getroot()
    texts = {(element.text or "").strip() for element in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert {"relative squared error", "ddct, no transform", "ddct, Hadamard", "paper"} <= texts
    plot.draw_plot(report, tmp_path / "q.svg")
    assert (tmp_path / "p.svg").read_bytes() == (tmp_path / "q.svg").read_bytes()
    plot.draw_plot(report, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG\r\n")
    with pytest.raises(errors.OutputExistsError):
        plot.draw_plot(report, tmp_path / "p.png")
    with pytest.raises(errors.ConfigError, match=r"\.svg or \.png"):
        plot.check_plot(tmp_path / "p.jpg")


def test_a_plot_without_the_library_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(errors.ConfigError, match=r"pip install 'ddct\[sweep\]'"):
        plot.check_plot(tmp_path / "p.svg")


def test_the_command_prints_a_table_or_json(pair: Path, tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ddct_format", "sweep", str(pair / "base"), str(pair / "tuned"), *options]
        command += ["--device", "reference"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    table = run("--only", "transform", "--bits", "3")
    assert table.returncode == 0, table.stderr
    lines = table.stdout.splitlines()
    assert lines[0].split() == ["scheme", "bits/weight", "error", "cosine", "metric", "seconds"]
    assert [line[:6] for line in lines[1:]] == ["3 bits"] * 3
    found = run("--only", "transform", "--bits", "3", "--json", "--tensors", "a.weight")
    assert found.stderr == ""
    assert [row["variant"] for row in json.loads(found.stdout)["rows"]] == ["", "no transform", "Hadamard"]
    for options, status in (
        (("--only", "nonsense"), 12),
        (("--bits", "much"), 12),
        (("--plot", str(tmp_path / "x.jpg")), 12),
        (("--archives", str(tmp_path)), 8),
        (("--tensors", "nothing*"), 12),
    ):
        refused = run(*options)
        assert refused.returncode == status and refused.stderr.startswith("ddct: error: "), options
    assert not list(tmp_path.iterdir())
