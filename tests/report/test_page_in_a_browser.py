"""The page in a real browser: it shows what was measured, sorts, and runs nothing that came with a name."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from base64 import b64encode
from pathlib import Path
from urllib.parse import unquote

import pytest
from report_pair import HOSTILE

from ddct_format import pack
from ddct_format.report.archive_report import ArchiveReport, report_archive
from ddct_format.report.page import page_pieces

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")

SORT_AND_TELL = """
const head = [...document.querySelectorAll("table.sort th")].find(th => th.textContent === "stored bytes");
const names = () => [...document.querySelectorAll("table.sort tbody tr")].map(row => row.cells[0].textContent);
const orders = [names()];
head.click(); orders.push(names());
head.click(); orders.push(names());
document.querySelector("table.sort th").click(); orders.push(names());
const images = [...document.images].map(image => image.complete && image.naturalWidth > 0);
const told = JSON.stringify({orders, images, scripts: document.scripts.length, title: document.title});
document.body.append("TOLD" + encodeURIComponent(told) + "END");
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def report(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> ArchiveReport:
    path = tmp_path_factory.mktemp("archive") / "<b>t.ddct"
    pack(pair / "base", pair / "tuned", path, bits=4)
    return report_archive(path, pair / "base", pair / "tuned")


def test_the_table_sorts_and_nothing_else_runs(report: ArchiveReport, tmp_path: Path) -> None:
    text = "".join(page_pieces(report))
    # The page's policy runs its own script only; this test's is let in by its hash.
    own = b64encode(hashlib.sha256(SORT_AND_TELL.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{own}' ")
    stranger = "<script>document.title = 'hijacked'</script>"
    text = text.replace("</body>", f"{stranger}<script>{SORT_AND_TELL}</script></body>")
    (tmp_path / "page.html").write_text(text)
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", *QUIET, profile, "--dump-dom"]
    done = subprocess.run(
        [*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    told = json.loads(unquote(done.stdout.split("TOLD")[-1].split("END")[0]))
    sizes = {tensor.name: tensor.stored for tensor in report.tensors}
    first, largest_first, smallest_first, by_name = told["orders"]
    assert first == [tensor.name for tensor in report.tensors] and HOSTILE in first
    assert [sizes[name] for name in largest_first] == sorted(sizes.values(), reverse=True)
    assert [sizes[name] for name in smallest_first] == sorted(sizes.values())
    assert sorted(by_name) == sorted(sizes) and by_name not in (largest_first, smallest_first)
    assert told["images"] and all(told["images"])
    assert told["title"] == "<b>t.ddct · ddct report"
    assert told["scripts"] == 3, "the page's, the one that its policy kept from running, and the test's"
