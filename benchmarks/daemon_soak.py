"""Soak: many small checkpoints through a real daemon and a throttled hub; memory and descriptors must stay flat.

``python benchmarks/daemon_soak.py [--checkpoints 500] [--delay 0.05]`` prints one JSON object.
Uses modules of the tests, and no network but loopback.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / folder) for folder in ("daemon", "hub")]

from daemon_world import World  # noqa: E402
from hub_servers import MiniHub  # noqa: E402

KEEP_LOCAL = 10
"""As save_total_limit would: older checkpoints are removed while the daemon works."""
BACKLOG = 5
"""Checkpoints that may wait: a training that waits for nobody would outrun two shared cores."""


def resources(process: int) -> tuple[int, int]:
    """Resident bytes and open descriptors of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * 4096, len(list(Path(f"/proc/{process}/fd").iterdir()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=500)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds that the hub waits before each answer")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ddct-soak-"))
    world, server = World(root), MiniHub(root / "server")
    try:
        world.configure(
            hub=f'url = "hf://acme/run"\nendpoint = "{server.url}"\ntoken_file = "{server.token_file}"', rescan=5
        )
        server.fault(".", "slow", seconds=arguments.delay, times=1 << 40)
        print(json.dumps(soak(world, server, arguments.checkpoints)))
    finally:
        for daemon in world.daemons:
            daemon.kill()
            daemon.wait()
        server.stop()
        shutil.rmtree(root)


def soak(world: World, server: MiniHub, count: int) -> dict[str, object]:
    daemon, begun = world.start(), time.monotonic()
    world.wait_until_ready()
    written: dict[str, float] = {}
    samples, waits = [], []
    number = 0
    while len(waits) < count:
        rows = world.rows()
        for name in [name for name in written if rows.get(name, {}).get("stage") == "published"]:
            waits.append(rows[name]["updated_at"] - written.pop(name))
        if number < count and len(written) < BACKLOG:
            number += 1
            name = f"checkpoint-{number}"
            written[name] = time.time()
            world.write(name, number)
            old = world.runs / f"checkpoint-{number - KEEP_LOCAL}"
            if old.exists() and old.name not in written:
                shutil.rmtree(old)
        samples.append(resources(daemon.pid))
        if daemon.poll() is not None:
            raise SystemExit(world.log.read_text())
        time.sleep(0.1)
    seconds = time.monotonic() - begun
    world.stop()
    found = server.repository()
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    return {
        "checkpoints": count,
        "seconds": round(seconds, 1),
        "commits": sum(title.startswith("Publish ") for title in found["titles"]),
        "distinct commits": len({title for title in found["titles"] if title.startswith("Publish ")}),
        "leftovers": len(world.leftovers()),
        "finished to published, median seconds": round(statistics.median(waits), 2),
        "resident MB, second quarter": round(statistics.mean(memory for memory, _ in early) / 1e6, 2),
        "resident MB, last quarter": round(statistics.mean(memory for memory, _ in late) / 1e6, 2),
        "descriptors, second quarter": statistics.median(descriptors for _, descriptors in early),
        "descriptors, last quarter": statistics.median(descriptors for _, descriptors in late),
    }


if __name__ == "__main__":
    main()
