"""The main job before your eyes: a checkpoint appears, is packed, published, pulled and compared.

Usage: python examples/demo.py [WORK_DIR]

WORK_DIR (demo-output beside this folder by default) is made anew. A daemon watches WORK_DIR/runs; a stand-in for
a trainer writes a real fine-tune there, file by file, in the order of the Hugging Face Trainer; the daemon packs it
and publishes it to a directory that serves as the hub; then it is pulled and compared with what the trainer wrote.
Exits 1 if anything is not as promised.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).resolve().parent
BASE, TUNED = EXAMPLES / "tiny" / "base", EXAMPLES / "tiny" / "sums"
DDCT = [sys.executable, "-m", "ddct_format"]
PRESET = "balanced"
STEP = 1100
DEADLINE_SECONDS = 90

CONFIG = """\
[watch]
path = "runs"
settle_seconds = 1
rescan_seconds = 1

[base]
path = "{base}"

[pack]
preset = "{preset}"

[hub]
path = "hub"
name = "tiny"

[state]
path = "state"
"""


class BrokenPromiseError(Exception):
    """Something is not as ddct promises."""


def main() -> None:
    work = Path(sys.argv[1] if len(sys.argv) > 1 else EXAMPLES.parent / "demo-output").resolve()
    if work.exists():
        if not (work / "ddct.toml").exists():
            sys.exit(f"demo: {work} exists and was not made by this script")
        shutil.rmtree(work)
    (work / "runs").mkdir(parents=True)
    (work / "hub").mkdir()
    (work / "ddct.toml").write_text(CONFIG.format(base=BASE, preset=PRESET))
    say(f"a daemon watches {work / 'runs'}")
    with (work / "daemon.log").open("w") as log:
        daemon = subprocess.Popen([*DDCT, "daemon", "run", "--config", str(work / "ddct.toml")], stderr=log)
        try:
            rows = run(work, daemon)
        except (BrokenPromiseError, subprocess.CalledProcessError) as error:
            print(f"demo: FAILED: {error}\n{(work / 'daemon.log').read_text()}", file=sys.stderr)
            sys.exit(1)
        finally:
            daemon.kill()
            daemon.wait()
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")
    print("\nEverything is as promised.")


def run(work: Path, daemon: subprocess.Popen[bytes]) -> list[tuple[str, str]]:
    """The whole story; returns the table."""
    checkpoint = work / "runs" / f"checkpoint-{STEP}"
    write_like_a_trainer(checkpoint)
    finished = time.monotonic()
    entry = wait_until_published(work)
    published = time.monotonic() - finished
    say("published; `ddct pull` brings it back")
    name = f"tiny/checkpoint-{STEP}"
    pulled = ddct("pull", work / "hub", name, "--base", BASE, work / "pulled")
    promise(pulled["applied"] == pulled["tensors"], f"applied {pulled['applied']} of {pulled['tensors']}")

    say("the numpy reference decodes the published file once more")
    objects = sorted((work / "hub").rglob("*.ddct"))
    promise(len(objects) == 1, f"the hub holds {len(objects)} archives instead of one")
    ddct("unpack", objects[0], "--base", BASE, "--device", "reference", work / "reference")
    for file in sorted(path.name for path in (work / "pulled").iterdir()):
        promise(sha256(work / "pulled" / file) == sha256(work / "reference" / file), f"{file} differs between decoders")

    error = relative_error(work / "pulled")
    promise(abs(error - entry["error"]) < 1e-3, f"the error is {error}, the archive says {entry['error']}")
    say("a wrong base is refused")
    refused = subprocess.run(
        [*DDCT, "unpack", objects[0], "--base", TUNED, work / "wrong"], capture_output=True, text=True, check=False
    )
    promise(refused.returncode == 6 and not (work / "wrong").exists(), f"a wrong base gave {refused.returncode}")

    say("the models solve 250 sums that they have not seen")
    scores = [exact_match(model) for model in (BASE, TUNED, work / "pulled")]
    daemon.send_signal(signal.SIGTERM)
    promise(daemon.wait(timeout=30) == 0, f"the daemon ended with {daemon.returncode}")
    weights = entry["original_size"]
    return [
        ("bytes before", f"{weights:,} (weights of the fine-tune)"),
        ("bytes after", f"{entry['size']:,} ({weights / entry['size']:.1f} times smaller, all-in)"),
        ("bits per weight", f"{entry['bits_per_weight']:.2f}, all-in"),
        ("relative error", f"{error:.3f} of the squared delta"),
        ("applied", f"{pulled['applied']} of {pulled['tensors']} tensors"),
        ("decoders", "torch and numpy gave the same bytes"),
        ("sums solved", "base {:.0%}, fine-tune {:.0%}, pulled {:.0%}".format(*scores)),
        ("checkpoint to hub", f"{published:.1f} s"),
        ("hub to model", f"{pulled['seconds']:.1f} s"),
    ]


def write_like_a_trainer(checkpoint: Path) -> None:
    """Weights in pieces, then side files, then the optimizer, then trainer_state.json: the Trainer's order."""
    say(f"a trainer writes {checkpoint.name}")
    checkpoint.mkdir()
    weights = (TUNED / "model.safetensors").read_bytes()
    with (checkpoint / "model.safetensors").open("wb") as stream:
        for start in range(0, len(weights), len(weights) // 4 + 1):
            stream.write(weights[start : start + len(weights) // 4 + 1])
            stream.flush()
            time.sleep(0.3)
    for file in sorted(TUNED.iterdir()):
        if file.name != "model.safetensors":
            shutil.copyfile(file, checkpoint / file.name)
    (checkpoint / "optimizer.pt").write_bytes(bytes(4096))
    time.sleep(0.5)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": STEP, "log_history": []}))


def wait_until_published(work: Path) -> dict[str, Any]:
    """Follow ``ddct daemon status`` until the checkpoint is on the hub."""
    shown = ""
    until = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < until:
        for entry in ddct("daemon", "status", "--config", work / "ddct.toml")["checkpoints"]:
            if (line := f"{entry['name']}: {entry['stage']}: {entry['line']}") != shown:
                say(line)
                shown = line
            promise(entry["stage"] != "failed", line)
            if entry["stage"] == "published":
                return dict(entry)
        time.sleep(0.2)
    raise BrokenPromiseError(f"not published after {DEADLINE_SECONDS} s")


def relative_error(decoded: Path) -> float:
    """Σ(t−d)² / Σ(t−b)² over all tensors, computed here and independently of ddct."""
    base, tuned, ours = (load_file(folder / "model.safetensors") for folder in (BASE, TUNED, decoded))
    promise(set(ours) == set(tuned), "tensors are missing")
    noise = energy = torch.zeros((), dtype=torch.float64)
    for name, tensor in tuned.items():
        noise = noise + (tensor.double() - ours[name].double()).square().sum()
        energy = energy + (tensor.double() - base[name].double()).square().sum()
    return float(noise / energy)


def exact_match(model: Path) -> float:
    command = [sys.executable, EXAMPLES / "evaluate_tiny.py", model, "--limit", "250", "--json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output)["exact_match"])


def ddct(*arguments: object) -> dict[str, Any]:
    """Run ddct and return its JSON."""
    command = [*DDCT, *map(str, arguments), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    promise(result.returncode == 0, f"{' '.join(command[2:])} ended with {result.returncode}: {result.stderr}")
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def promise(kept: bool, otherwise: str) -> None:
    if not kept:
        raise BrokenPromiseError(otherwise)


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


if __name__ == "__main__":
    main()
