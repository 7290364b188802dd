"""The report's style sheet: light and dark, desk and phone, nothing from outside the file."""

from __future__ import annotations

import numpy as np

from mambaad.heatmap import BOTTOM, colours

_STOPS = 13

_SHEET = """
:root{color-scheme:light dark;--page:#fafaf8;--card:#fff;--ink:#1c2129;--soft:#5c6573;
--line:#e4e5e2;--grid:#ecece9;--rule:#a9afb8;--link:#275d93;--good:#3b7cb0;--bad:#d0652a;--well:#1f6f4a;
--well-back:#e4f2ea;--ill:#a2361f;--ill-back:#fbe9e4;--s1:#3b7cb0;--s2:#c78a12;--s3:#2c9685}
@media(prefers-color-scheme:dark){:root{--page:#14171b;--card:#1b1f25;--ink:#e5e7ea;--soft:#9aa3af;
--line:#2d333b;--grid:#262b32;--rule:#5a6370;--link:#86b7e6;--good:#5fa3da;--bad:#e88950;--well:#86d3ab;
--well-back:#1c3228;--ill:#f2a48f;--ill-back:#3b231d;--s1:#6fb0e4;--s2:#dcab45;--s3:#56bfae}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.55;font-size:16px;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans",Arial,sans-serif;
font-variant-numeric:tabular-nums}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 28px}
header{padding-top:56px}
a{color:var(--link);text-decoration:none}
a:hover,a:focus-visible{text-decoration:underline}
h1{font-size:2.1rem;line-height:1.2;font-weight:650;letter-spacing:-.02em;margin:0 0 6px;
overflow-wrap:anywhere}
h1 span{color:var(--soft);font-weight:400}
h2{font-size:1.3rem;font-weight:620;letter-spacing:-.01em;margin:64px 0 6px}
h3{font-size:1.05rem;font-weight:620;margin:0;overflow-wrap:anywhere}
p{margin:0 0 14px;max-width:76ch}
.soft,.lead,figcaption,caption,footer{color:var(--soft)}
.small,figcaption{font-size:.82rem}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:18px 0 0;font-size:.92rem}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:1px;background:var(--line);
border:1px solid var(--line);border-radius:10px;overflow:hidden;margin:32px 0 0}
.tiles div{background:var(--card);padding:16px 20px 14px}
.tiles dt{color:var(--soft);font-size:.82rem}
.tiles dd{margin:0;font-size:1.6rem;line-height:1.3;font-weight:600;letter-spacing:-.01em}
.tiles dd small{display:block;font-size:.8rem;font-weight:400;letter-spacing:0;color:var(--soft)}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:.92rem}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{padding:8px 14px;text-align:right;white-space:nowrap;font-weight:400}
thead th{color:var(--soft);font-size:.82rem;padding-bottom:6px;vertical-align:bottom}
thead th[colspan]{padding:8px 14px 0 34px;font-weight:620;text-align:center}
tbody tr:first-child>*{border-top:1px solid var(--line)}
tbody th,thead tr:first-child th:first-child{text-align:left;position:sticky;left:0;
background:var(--card)}
tbody tr+tr>*{border-top:1px solid var(--grid)}
tbody tr.total>*{border-top:1px solid var(--rule);font-weight:620}
table.metrics td:last-child{font-weight:620}
td.start,th.start{padding-left:34px}
sup{font-size:.7em;line-height:0;color:var(--soft);margin-left:1px}
.notes{margin:10px 0 0;padding-left:22px;font-size:.85rem;color:var(--soft)}
.key{display:flex;flex-wrap:wrap;gap:2px 20px;margin:12px 0 8px;padding:0;list-style:none;
font-size:.85rem;color:var(--soft)}
.key i{display:inline-block;width:14px;height:10px;border-radius:2px;margin-right:7px}
.key i.line{height:3px;vertical-align:middle}
.key .dash{height:0;border-radius:0;border-top:2px dashed var(--soft);vertical-align:middle}
.panel{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px}
.narrow{display:none}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:16px}
.charts h3{font-size:.95rem;margin-bottom:4px}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12px;fill:var(--soft)}
svg text.note{fill:var(--ink)}
svg .grid{stroke:var(--grid)}svg .axis{stroke:var(--soft);opacity:.6}
svg .rule{stroke:var(--ink);stroke-dasharray:4 3;opacity:.7}
svg polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}
.series-0{stroke:var(--ink);background:var(--ink)}.series-1{stroke:var(--s1);background:var(--s1)}
.series-2{stroke:var(--s2);background:var(--s2)}.series-3{stroke:var(--s3);background:var(--s3)}
svg polyline.series-0{stroke-width:2}
.good{fill:var(--good);background:var(--good)}.bad{fill:var(--bad);background:var(--bad)}
.category{margin:34px 0 0;scroll-margin-top:16px}
.category>div:first-child{display:flex;flex-wrap:wrap;justify-content:space-between;
align-items:flex-end;gap:8px 28px;margin-bottom:12px}
.scale{width:300px;font-size:.76rem;color:var(--soft)}
.scale i{display:block;height:8px;border-radius:4px;background:linear-gradient(90deg,GRADIENT)}
.scale div{display:grid;grid-template-columns:1fr auto 1fr;margin-top:2px}
.scale span:last-child{text-align:right}
.examples{display:grid;grid-template-columns:repeat(2,1fr);gap:16px}
.example{padding:14px 16px 12px;margin:0}
.example header{all:unset;display:flex;justify-content:space-between;gap:4px 12px;flex-wrap:wrap;
margin-bottom:10px;font-size:.92rem}
.example h4{font-size:inherit;font-weight:620;margin:0}
.three{display:grid;grid-template-columns:repeat(3,1fr);gap:10px}
.three figure{margin:0}
.three img,.three .empty{display:block;width:100%;height:auto;border-radius:5px;
background:var(--grid)}
.three .empty{border:1px dashed var(--line);background:none}
figcaption{margin-top:4px;line-height:1.3}
.example p{margin:8px 0 0;font-size:.8rem;color:var(--soft);overflow-wrap:anywhere}
.pill{font-size:.78rem;padding:1px 9px;border-radius:99px;margin-left:8px;white-space:nowrap}
.pill.well{color:var(--well);background:var(--well-back)}
.pill.ill{color:var(--ill);background:var(--ill-back)}
details.panel{margin-top:14px;padding:0}
summary{cursor:pointer;padding:12px 18px;font-weight:600}
details .inside{padding:0 18px 18px;display:grid;gap:6px 40px;
grid-template-columns:repeat(auto-fit,minmax(290px,1fr))}
details h3{font-size:.85rem;color:var(--soft);margin:8px 0 4px;font-weight:600}
dl.facts{margin:0;font-size:.88rem}
dl.facts div{display:flex;justify-content:space-between;gap:20px;padding:4px 0;
border-top:1px solid var(--grid)}
dl.facts dt{color:var(--soft);white-space:nowrap}
dl.facts dd{margin:0;text-align:right;overflow-wrap:anywhere}
footer{padding-top:48px;padding-bottom:56px;font-size:.82rem}
@media(max-width:860px){.examples{grid-template-columns:1fr}.tiles{grid-template-columns:1fr 1fr}}
@media(max-width:560px){main,header,footer{padding-left:16px;padding-right:16px}
header{padding-top:32px}h1{font-size:1.6rem}h2{margin-top:48px}.tiles div{padding:12px 14px}
.tiles dd{font-size:1.35rem}th,td{padding:8px 10px}td.start,th.start{padding-left:20px}
.wide{display:none}.narrow{display:block}.panel{padding:12px}.three{gap:6px}.scale{width:100%}
.charts{grid-template-columns:1fr}}
@media print{body{background:none}.panel,.example,tr{break-inside:avoid}nav{display:none}}
"""


def style() -> str:
    """The style sheet, with the heat map's own colours in the legend."""
    stops = colours(np.linspace(BOTTOM, 1, _STOPS)[None], 1.0)[0]
    return _SHEET.replace("GRADIENT", ",".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in stops))
