"""One base, many fine-tunes: digested once, an archive each, and refusals that concern one fine-tune alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import base_model, fine_tune, write_model

from ddct_format import errors, pack, pack_many, verify
from ddct_format.pipeline.many import archive_names


def test_each_fine_tune_gets_the_archive_that_it_would_get_alone(base: Path, tuned: Path, tmp_path: Path) -> None:
    second = write_model(tmp_path / "second", fine_tune(base_model(), seed=2))
    pack(base, tuned, tmp_path / "alone.ddct", preset="paper")
    seen: list[str] = []
    outcomes = pack_many(
        base,
        [tuned, tmp_path / "absent", second],
        tmp_path / "archives",
        preset="paper",
        progress=lambda done, total, what: seen.append(what),
    )
    assert [outcome.archive for outcome in outcomes] == [
        str(tmp_path / "archives" / name) for name in ("tuned.ddct", "absent.ddct", "second.ddct")
    ]
    assert isinstance(outcomes[1].error, errors.CheckpointError)
    assert outcomes[1].report is None
    assert (tmp_path / "archives" / "tuned.ddct").read_bytes() == (tmp_path / "alone.ddct").read_bytes()
    assert verify(tmp_path / "archives" / "second.ddct", base).decoded == 9
    assert sorted(path.name for path in (tmp_path / "archives").iterdir()) == ["second.ddct", "tuned.ddct"]
    assert "tuned.ddct: reading base" in seen
    assert "second.ddct: reading base" not in seen


def test_what_exists_is_not_overwritten_and_a_base_that_cannot_be_used_ends_it(
    base: Path, tuned: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tuned.ddct").write_text("mine")
    (outcome,) = pack_many(base, [tuned], tmp_path / "out", preset="paper")
    assert isinstance(outcome.error, errors.OutputExistsError)
    assert (tmp_path / "out" / "tuned.ddct").read_text() == "mine"
    with pytest.raises(errors.CheckpointError):
        pack_many(tmp_path / "absent", [tuned], tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_archives_are_named_after_as_much_of_a_path_as_it_takes() -> None:
    assert archive_names(["runs/a/model"]) == ["model.ddct"]
    assert archive_names(["runs/a/checkpoint-5", "runs/b/checkpoint-5"]) == [
        "a-checkpoint-5.ddct",
        "b-checkpoint-5.ddct",
    ]
    assert archive_names(["x/tuned.safetensors", "x/v1.5"]) == ["tuned.ddct", "v1.5.ddct"]
    assert archive_names(["x/A", "y/a"]) == ["x-A.ddct", "y-a.ddct"]
    with pytest.raises(errors.ConfigError, match="the same archive"):
        archive_names(["x/a", "x/b/../a"])
