"""Style and script of the page, which are part of it."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--text:#1b1f27;--soft:#5c6675;--line:#dfe3ea;
--decoded:#7fb0df;--original:#c2571a;--warn:#fff3d6;--accent:#2563a8}
@media(prefers-color-scheme:dark){:root{--ground:#12151a;--card:#1b2028;--text:#e6e9ee;--soft:#98a3b3;--line:#303845;
--decoded:#2d5f92;--original:#f0965c;--warn:#41351a;--accent:#7fb5ec}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:76rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:0 0 .75rem}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem 1.1rem;margin-top:1rem}
p{margin:.25rem 0 .75rem}
.soft,figcaption,th{color:var(--soft)}
.warn{background:var(--warn);border-radius:8px;padding:.6rem .8rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin-top:1rem}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.7rem .9rem}
.tile b{display:block;white-space:nowrap;font-size:1.35rem;font-weight:600;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.85rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
code{font:.85em/1.4 ui-monospace,monospace}
.scroll{overflow-x:auto}
.tall{max-height:75vh;overflow:auto}
table{border-collapse:collapse;width:100%;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{padding:.28rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{position:sticky;top:0;background:var(--card);font-weight:600;vertical-align:bottom}
th.word,td.word{text-align:left}
td.name{text-align:left;white-space:normal;min-width:14rem;overflow-wrap:anywhere}
th.sortable{cursor:pointer}th.sortable:hover{color:var(--text)}
th[aria-sort=ascending]::after{content:" \\2191"}th[aria-sort=descending]::after{content:" \\2193"}
.bar{display:block;width:100%;height:1.75rem;border-radius:6px;margin-bottom:.75rem}
.swatch{display:inline-block;width:.8em;height:.8em;border-radius:3px;margin-right:.5em}
.histogram{display:block;width:100%;height:12rem;border-bottom:1px solid var(--line)}
.axis{display:flex;justify-content:space-between;color:var(--soft);font-size:.8rem}
path.decoded{fill:var(--decoded)}
path.original{fill:none;stroke:var(--original);stroke-width:1.6;vector-effect:non-scaling-stroke}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:1.1rem}
figure{margin:0;min-width:0}
figure img{display:block;image-rendering:pixelated}
figure .histogram{height:2.6rem;margin-top:.4rem}
figcaption{font-size:.8rem;overflow-wrap:anywhere;margin-top:.3rem}
figcaption b{color:var(--text);font-weight:600}
.p0{fill:#8a94a6;background:#8a94a6}.p1{fill:#b4bcc9;background:#b4bcc9}.p2{fill:#6c7a89;background:#6c7a89}
.p3{fill:#d9a441;background:#d9a441}.p4{fill:#c2571a;background:#c2571a}.p5{fill:#2563a8;background:#2563a8}
.p6{fill:#6b4fa0;background:#6b4fa0}.p7{fill:#3a9d78;background:#3a9d78}.p8{fill:#a3355c;background:#a3355c}
.p9{fill:#55606e;background:#55606e}.p10{fill:#222;background:#222}
@media(max-width:36rem){dl{grid-template-columns:1fr}dt{margin-top:.4rem}main{padding:1rem .6rem 3rem}}
@media print{.tall{max-height:none}body{background:none}}
"""

SCRIPT = """
document.querySelectorAll("table.sort").forEach(table => {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    head.classList.add("sortable");
    head.tabIndex = 0;
    const sort = () => {
      const up = head.getAttribute("aria-sort") === "descending";
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.value ?? "";
      const number = !head.classList.contains("word");
      const rows = [...body.rows].sort((a, b) => number
        ? (key(a) === "" ? -Infinity : +key(a)) - (key(b) === "" ? -Infinity : +key(b)) || 0
        : a.cells[column].textContent.localeCompare(b.cells[column].textContent));
      body.append(...(up ? rows : rows.reverse()));
    };
    head.onclick = sort;
    head.onkeydown = event => { if (event.key === "Enter") sort(); };
  });
});
"""
