"""Who may import whom, what is public, and how fast the command line starts."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ddct_daemon
import ddct_format
import ddct_format.hub
import ddct_format.native

PACKAGE = Path(ddct_format.__file__).parent
DAEMON = Path(ddct_daemon.__file__).parent

MAY_IMPORT = {
    "errors": set(),
    "limits": set(),
    "niceness": set(),
    "container": {"errors", "limits"},
    "native": {"errors", "container"},
    "codec": {"errors", "limits", "container", "native", "backends"},
    "backends": {"errors", "container", "native", "codec"},
    "encode": {"errors", "container", "native", "codec", "backends"},
    "checkpoint": {"errors", "limits", "container"},
    "pipeline": {"errors", "limits", "container", "native", "codec", "encode", "backends", "checkpoint"},
    "hub": {"errors", "limits", "container", "pipeline"},
    "report": {"errors", "limits", "container", "codec", "encode", "backends", "checkpoint", "pipeline"},
    "integrations": {"errors", "container", "native", "codec", "backends", "pipeline"},
    "cli": {"errors", "niceness", "limits", "container", "encode", "backends", "pipeline"}
    | {"report", "hub", "checkpoint"},
}
"""Between the parts of ddct_format; codecs name the backend's interface only to say what is handed in."""


def imports(module: Path, package: str) -> set[str]:
    """Dotted names of what a module imports, relative imports resolved."""
    parents = (package + "." + ".".join(module.relative_to(root_of(package)).parts)).split(".")[:-2]
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            prefix = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{prefix}.{alias.name}" for alias in node.names}
    return found


def root_of(package: str) -> Path:
    return PACKAGE if package == "ddct_format" else DAEMON


def modules(package: str) -> list[Path]:
    return sorted(root_of(package).rglob("*.py"))


@pytest.mark.parametrize("module", modules("ddct_format"), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(module: Path) -> None:
    part = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in ("__init__", "__main__"):
        return
    for name in imports(module, "ddct_format"):
        pieces = name.split(".")
        if pieces[0] == "ddct_format" and len(pieces) > 1 and pieces[1] not in (part, "__version__"):
            assert pieces[1] in MAY_IMPORT[part], f"{module.name} imports {name}"
        if pieces[0] == "torch":
            assert part in ("backends", "integrations")


@pytest.mark.parametrize("module", modules("ddct_daemon"), ids=lambda path: path.name)
def test_the_daemon_uses_the_public_interface_only(module: Path) -> None:
    for name in imports(module, "ddct_daemon"):
        pieces = name.split(".")
        if pieces[0] == "ddct_format":
            assert pieces[1] in (*ddct_format.__all__, "__version__", "hub"), f"{module.name} imports {name}"
            assert pieces[1] != "hub" or pieces[2] in ddct_format.hub.__all__, f"{module.name} imports {name}"


def test_every_module_says_what_it_exports() -> None:
    for module in [*modules("ddct_format"), *modules("ddct_daemon")]:
        assert "__all__" in module.read_text(), module


def test_no_module_is_longer_than_500_lines() -> None:
    for module in [*modules("ddct_format"), *modules("ddct_daemon")]:
        assert len(module.read_text().splitlines()) <= 500, module


def test_the_public_names_are_these() -> None:
    assert ddct_format.__all__ == [
        "AppliedArchive",
        "Archive",
        "Checkpoint",
        "Hub",
        "PackOutcome",
        "PackReport",
        "UnpackReport",
        "VerifyReport",
        "apply",
        "errors",
        "lower_priority",
        "open_archive",
        "open_checkpoint",
        "open_hub",
        "pack",
        "pack_many",
        "pull",
        "push",
        "unpack",
        "verify",
    ]
    for name in ddct_format.__all__:
        assert getattr(ddct_format, name) is not None


def test_every_error_has_its_own_exit_status() -> None:
    leaves = {
        error.code: error.exit_status
        for error in vars(ddct_format.errors).values()
        if isinstance(error, type) and issubclass(error, ddct_format.errors.DdctError) and "code" in vars(error)
    }
    leaves = {code: status for code, status in leaves.items() if code not in ("error", "archive", "truncated")}
    assert len(set(leaves.values())) == len(leaves)


def test_reading_an_archive_needs_no_torch() -> None:
    script = "import sys, ddct_format; ddct_format.open_archive; ddct_format.verify; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_decoding_on_the_cpu_needs_no_torch() -> None:
    if ddct_format.native.core is None:
        pytest.skip("the package was built without a C compiler: torch decodes")
    vector = PACKAGE.parent / "spec" / "vectors" / "good" / "ulp-layers"
    script = (
        "import sys; from ddct_format.cli.main import cli\n"
        f"cli.main(['verify', '{vector}.ddct', '--base', '{vector}.base.safetensors'], "
        "standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_help_does_not_import_the_heavy_parts() -> None:
    script = (
        "import sys; from ddct_format.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'zstandard', 'huggingface_hub', 'watchdog', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
