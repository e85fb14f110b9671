"""Which base a checkpoint has: tensors decide, names are hints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from daemon_models import Tensors, base_tensors, tuned_tensors, write_model
from daemon_world import World

from ddct_daemon.bases import choose_base, named_base
from ddct_format.errors import BaseMismatchError


@pytest.fixture
def bases(tmp_path: Path) -> list[Path]:
    """The base of the fine-tunes is neither first nor last; all but one have its shapes."""
    return [
        write_model(tmp_path / "stranger", base_tensors(seed=5)),
        write_model(tmp_path / "base", base_tensors()),
        write_model(tmp_path / "other", base_tensors(seed=6)),
        write_model(tmp_path / "narrow", base_tensors(width=40)),
    ]


def test_the_most_similar_base_is_chosen_among_strangers_of_the_same_shape(bases: list[Path], tmp_path: Path) -> None:
    tuned = write_model(tmp_path / "tuned", tuned_tensors(1))
    assert choose_base(bases, tuned, {}) == tmp_path / "base"


def test_a_frozen_tensor_is_proof_even_if_the_rest_moved_far(bases: list[Path], tmp_path: Path) -> None:
    tensors: Tensors = {name: value * 3 for name, value in base_tensors(seed=5).items()}
    tensors["layers.0.weight"] = base_tensors()["layers.0.weight"]
    tuned = write_model(tmp_path / "tuned", tensors)
    assert choose_base(bases, tuned, {}) == tmp_path / "base"


def test_a_single_base_is_not_questioned_here(tmp_path: Path) -> None:
    assert choose_base([tmp_path / "nothing"], tmp_path / "nothing", {}) == tmp_path / "nothing"


def test_no_base_fits_and_each_is_named(bases: list[Path], tmp_path: Path) -> None:
    tuned = write_model(tmp_path / "tuned", base_tensors(seed=9))
    with pytest.raises(BaseMismatchError, match="relative distance") as caught:
        choose_base([*bases, tmp_path / "nothing"], tuned, {})
    for path in (*bases, tmp_path / "nothing"):
        assert str(path) in str(caught.value)


def test_a_name_decides_among_equals_only(bases: list[Path], tmp_path: Path) -> None:
    copy = write_model(tmp_path / "copy", base_tensors())
    tuned = write_model(tmp_path / "tuned", tuned_tensors(1))
    (tuned / "README.md").write_text("---\nbase_model: acme/copy\n---\n")
    assert choose_base([*bases, copy], tuned, {str(copy): "acme/copy"}) == copy
    (tuned / "README.md").write_text("---\nbase_model: stranger\n---\n")
    assert choose_base(bases, tuned, {}) == tmp_path / "base"


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("README.md", "---\nbase_model: acme/base\n---\n", "acme/base"),
        ("README.md", "---\nlicense: mit\nbase_model:\n- 'acme/base'\n- acme/second\n---\n", "acme/base"),
        ("README.md", "---\nlicense: mit\n---\n", None),
        ("adapter_config.json", json.dumps({"base_model_name_or_path": "acme/base"}), "acme/base"),
        ("adapter_config.json", "{", None),
        ("other.md", "base_model: acme/base", None),
        ("config.yml", "base_model: acme/base\nmodel_type: LlamaForCausalLM\n", "acme/base"),
        ("../sft.yaml", "### model\nmodel_name_or_path: 'acme/base'  # the base\n", "acme/base"),
        ("../sft.yaml", "model:\n  base_model: nested\n", None),
        ("../sft.yaml", "base_model: [1, 2]\n", None),
    ],
)
def test_names_come_from_adapter_card_or_sidecar(tmp_path: Path, name: str, text: str, found: str | None) -> None:
    checkpoint = tmp_path / "run" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / name).write_text(text)
    assert named_base(checkpoint) == found


def test_the_card_goes_before_the_sidecar(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nbase_model: acme/card\n---\n")
    (tmp_path / "axolotl.yaml").write_text("base_model: acme/sidecar\n")
    assert named_base(tmp_path) == "acme/card"


def test_a_sidecar_decides_among_equals(bases: list[Path], tmp_path: Path) -> None:
    copy = write_model(tmp_path / "copy", base_tensors())
    tuned = write_model(tmp_path / "run" / "checkpoint-1", tuned_tensors(1))
    assert choose_base([*bases, copy], tuned, {}) == tmp_path / "base"
    (tmp_path / "run" / "axolotl.yaml").write_text(f"base_model: {copy}\n")
    assert choose_base([*bases, copy], tuned, {}) == copy


def test_values_that_are_no_numbers_do_not_confuse(bases: list[Path], tmp_path: Path) -> None:
    tensors = tuned_tensors(1)
    tensors["layers.1.weight"][0, :5] = [np.nan, np.inf, -np.inf, 0, 0]
    assert choose_base(bases, write_model(tmp_path / "tuned", tensors), {}) == tmp_path / "base"


def test_the_daemon_packs_each_checkpoint_against_its_own_base(world: World) -> None:
    write_model(world.root / "stranger", base_tensors(seed=5))
    world.config.write_text(
        world.config.read_text().replace('path = "base"', 'path = "stranger"\nrepo = "acme/x"\nothers = ["base"]')
    )
    world.write("checkpoint-1", 1)
    world.start()
    world.wait_for_stage("checkpoint-1", "published")
    world.stop()
    from ddct_format import open_archive, verify

    (archive,) = world.objects()
    assert verify(archive, world.base).decoded
    with open_archive(archive) as opened:
        assert not opened.metadata.base_hint
