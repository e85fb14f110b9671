"""What a training notices of a packing daemon, and how long a finished checkpoint takes to be published.

``python benchmarks/daemon_training.py ZOO [--seconds 20] [--rounds 3]`` prints two JSON objects. ZOO holds ``base-lm``
and ``math``. Needs two cores and, for numbers that mean something, a machine where nothing else runs. Uses modules of
the tests, and no network but loopback.

The training is real: causal language modelling of ``math`` with AdamW in torch, one thread, pinned to the first core,
in a session of its own. In turn it runs alone and beside a daemon that may use both cores and has checkpoints of its
size to pack all the time. The slow-down is of the median time of a step; that of its processor time is what remains
of it where nobody else wants the first core. This script itself stays on the second one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / folder) for folder in ("daemon", "hub")]

from daemon_world import World  # noqa: E402
from hub_servers import MiniHub  # noqa: E402

MEMORY_MEGABYTES = 2000
CHECKPOINTS = 8
"""For each window."""
TRAINING = """
import sys, time, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
while True:
    tokens = torch.randint(0, model.config.vocab_size, (2, 128))
    begun, used = time.monotonic(), time.process_time()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(begun, time.monotonic(), time.process_time() - used, flush=True)
"""


class ZooWorld(World):
    """The tests' world with a real base, and checkpoints that are links to a real fine-tune."""

    def __init__(self, root: Path, zoo: Path, hub: str, settle: float) -> None:
        super().__init__(root)
        self._tuned = zoo / "math"
        shutil.rmtree(self.base)
        self.base.symlink_to(zoo / "base-lm")
        self.configure(device="cpu", hub=hub, stop=0)
        text = self.config.read_text().replace("nice = 0", f"nice = 10\nmemory_megabytes = {MEMORY_MEGABYTES}")
        self.config.write_text(text.replace("settle_seconds = 0.3", f"settle_seconds = {settle}", 1))

    def finish(self, step: int) -> float:
        """A Trainer's checkpoint appears, whole; when, by the wall clock."""
        hidden = self.root / "writing" / f"checkpoint-{step}"
        shutil.copytree(self._tuned, hidden)
        for path in (hidden, *hidden.iterdir()):
            path.chmod(0o755)
        (hidden / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        hidden.rename(self.runs / hidden.name)
        return time.time()

    def worker(self) -> int | None:
        """The process that packs or publishes, if there is one now."""
        return next((number for number, line in self.processes().items() if "ddct_daemon.worker" in line), None)

    def end(self) -> None:
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()


def time_to_publish(zoo: Path, root: Path, settle: float) -> dict[str, object]:
    """Three checkpoints, one after the other, to a directory and to a hub with large file storage."""
    results: dict[str, object] = {}
    server = MiniHub(root / "server")
    hubs = {
        "directory": 'path = "hub"',
        "hub": f'url = "hf://acme/run"\nendpoint = "{server.url}"\ntoken_file = "{server.token_file}"',
    }
    for kind, hub in hubs.items():
        world = ZooWorld(root / kind, zoo, hub, settle)
        try:
            world.start()
            world.wait_until_ready()
            seconds = []
            for step in range(1, 4):
                begun = world.finish(step)
                world.wait_for_stage(f"checkpoint-{step}", "published")
                seconds.append(world.rows()[f"checkpoint-{step}"]["updated_at"] - begun)
            row = world.rows()["checkpoint-1"]
            results[kind] = {
                "median seconds": round(statistics.median(seconds), 2),
                "all": [round(second, 2) for second in seconds],
                "of which settling": settle,
                "MB before": round(row["original_size"] / 1e6, 2),
                "MB after": round(row["size"] / 1e6, 2),
            }
            world.stop()
        finally:
            world.end()
    server.stop()
    return results


class Usage:
    """The most that any worker used: samples of /proc."""

    def __init__(self) -> None:
        self.resident, self.cores = 0.0, 0.0
        self._process: int | None = None
        self._last = (0.0, 0.0)

    def sample(self, process: int | None) -> None:
        if process is None:
            return
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return
        used, now = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), time.monotonic()
        self.resident = max(self.resident, int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
        if process != self._process:
            self._process, self._last = process, (used, now)
        elif now - self._last[1] >= 1:
            self.cores = max(self.cores, (used - self._last[0]) / (now - self._last[1]))
            self._last = used, now


def slow_down(zoo: Path, root: Path, seconds: float, rounds: int) -> dict[str, object]:
    """Median step alone and beside the daemon, in turns."""
    world = ZooWorld(root, zoo, 'path = "hub"', settle=0.1)
    everywhere = os.sched_getaffinity(0)
    log = root / "steps"
    usage, step = Usage(), 0
    windows: dict[str, list[tuple[float, float]]] = {"alone": [], "beside": []}
    packed = 0
    with log.open("w") as output:
        command = ["taskset", "-c", "0", sys.executable, "-c", TRAINING, str(zoo / "math")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        training = subprocess.Popen(command, stdout=output, env=environment, start_new_session=True)
    try:
        world.wait_for(lambda: log.read_text().count("\n") >= 5, "the first steps")
        for _ in range(rounds):
            # Now, so that nothing is copied while the training is timed.
            for _ in range(CHECKPOINTS):
                step += 1
                world.finish(step)
            os.sync()
            begun = time.monotonic()
            time.sleep(seconds)
            windows["alone"].append((begun, time.monotonic()))
            os.sched_setaffinity(0, everywhere)
            daemon = world.start()
            os.sched_setaffinity(0, {max(everywhere)})
            world.wait_for(lambda: world.worker() is not None, "a worker")
            begun = time.monotonic()
            while time.monotonic() < begun + seconds:
                usage.sample(world.worker())
                time.sleep(0.5)
            windows["beside"].append((begun, time.monotonic()))
            assert world.worker() is not None, "a window without work to the end: more checkpoints are needed"
            packed = sum(row["stage"] == "published" for row in world.rows().values())
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)
    finally:
        training.kill()
        training.wait()
        world.end()
    lines = [tuple(map(float, line.split())) for line in log.read_text().splitlines() if line.count(" ") == 2]
    steps: dict[str, list[tuple[float, float]]] = {
        kind: [
            (end - start, used)
            for start, end, used in lines
            if any(start >= window[0] and end <= window[1] for window in some)
        ]
        for kind, some in windows.items()
    }
    wall, processor = ({kind: [step[i] for step in some] for kind, some in steps.items()} for i in (0, 1))
    return {
        "step alone, median ms": round(1e3 * statistics.median(wall["alone"]), 1),
        "step beside the daemon, median ms": round(1e3 * statistics.median(wall["beside"]), 1),
        "slow-down of the median": _more(statistics.median, wall),
        "slow-down of the mean": _more(statistics.mean, wall),
        "of the median processor time": _more(statistics.median, processor),
        "the first core was the training's, alone and beside": [
            f"{sum(processor[kind]) / sum(wall[kind]):.0%}" for kind in ("alone", "beside")
        ],
        "steps": {kind: len(some) for kind, some in steps.items()},
        "checkpoints published meanwhile": packed,
        "worker: cores at most (cap 1)": round(usage.cores, 2),
        f"worker: resident MB at most (cap {MEMORY_MEGABYTES})": round(usage.resident),
    }


def _more(middle: Callable[[list[float]], float], values: dict[str, list[float]]) -> str:
    return f"{middle(values['beside']) / middle(values['alone']) - 1:+.1%}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settle", type=float, default=10, help="as the daemon's default")
    parser.add_argument("--only", choices=("publish", "training"))
    arguments = parser.parse_args()
    zoo, root = arguments.zoo.resolve(), Path(tempfile.mkdtemp(prefix="ddct-training-"))
    try:
        if arguments.only != "training":
            print(json.dumps(time_to_publish(zoo, root, arguments.settle)), flush=True)
        if arguments.only != "publish":
            print(json.dumps(slow_down(zoo, root / "training", arguments.seconds, arguments.rounds)), flush=True)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
