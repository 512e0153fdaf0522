"""The style of the report: light and dark, from 320 pixels of width, and on paper."""

from __future__ import annotations

from typing import Final

_LIGHT: Final = (
    "--bg:#f8fafc;--card:#fff;--fg:#0f172a;--muted:#5b6472;--rule:#e2e8f0;--axis:#94a3b8;"
    "--bad:#b91c1c;--good:#15803d;--redo:#dc26261f;--away:#64748b1f;"
    "--s0:#2563eb;--s1:#d97706;--s2:#059669;--s3:#9333ea;--s4:#db2777;--s5:#0891b2;"
    "--s6:#65a30d;--s7:#78716c;"
)
_DARK: Final = (
    "--bg:#0b1120;--card:#131c2e;--fg:#e5eaf2;--muted:#9aa6b8;--rule:#26324a;--axis:#52617a;"
    "--bad:#f87171;--good:#4ade80;--redo:#f8717133;--away:#94a3b821;"
    "--s0:#60a5fa;--s1:#fbbf24;--s2:#34d399;--s3:#c084fc;--s4:#f472b6;--s5:#22d3ee;"
    "--s6:#a3e635;--s7:#a8a29e;"
)
_COLOURS: Final = "".join(f".s{n}{{--c:var(--s{n})}}" for n in range(8))
STYLE: Final = (
    f":root{{color-scheme:light dark;{_LIGHT}}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    f"@media print{{:root{{{_LIGHT}--bg:#fff}}}}"
    + _COLOURS
    + """
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:1180px;
margin:0 auto;padding:1.6rem 1rem 3rem}
h1{font-size:1.6rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.2rem 0 .7rem}
h3{font-size:.95rem;margin:0;overflow-wrap:anywhere}
p{margin:.3rem 0}.sub,.note{color:var(--muted);overflow-wrap:anywhere}
.note{font-size:.85rem;margin-bottom:.5rem}
.bad{color:var(--bad)}.good{color:var(--good)}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,235px),1fr));gap:.6rem;
margin:1.2rem 0 0}
.tiles div,.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;
padding:.6rem .85rem;min-width:0}
.tiles b{display:block;font-size:1.2rem;line-height:1.35;overflow-wrap:anywhere}
.tiles span,.tiles small{color:var(--muted);font-size:.82rem;display:block;line-height:1.35}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));gap:.8rem}
.card{padding:.75rem .9rem}
.card>p:not(.bad){color:var(--muted);font-size:.82rem;line-height:1.4;margin:.1rem 0 0;
overflow-wrap:anywhere}
.card>p.bad{font-size:.82rem;margin:.1rem 0 0}h1+.scroll{margin-top:1rem}
.plot{position:relative;height:190px;margin:.8rem 1.3rem 2.7rem 3.2rem;font-size:11px;
color:var(--muted);line-height:1}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot span{position:absolute;white-space:nowrap;font-variant-numeric:tabular-nums}
.plot .y{right:100%;margin-right:.5em;transform:translateY(50%)}
.plot .x{top:100%;margin-top:.6em;transform:translateX(-50%)}
.plot .name{top:100%;right:0;margin-top:2.1em}
.plot path{fill:none;vector-effect:non-scaling-stroke}
.grid{stroke:var(--rule)}.axis{stroke:var(--axis)}
.l,.bar{stroke:var(--c)}.l{stroke-width:1.6;stroke-linejoin:round}
.faint{stroke-width:1.2;opacity:.45}.all{stroke-width:1;opacity:.35}.mean{stroke-width:2}.dot{stroke-width:5;stroke-linecap:round}
.bar path{vector-effect:non-scaling-stroke}
.redo{fill:var(--redo)}.away{fill:var(--away)}
.mark{stroke:var(--s2);stroke-width:2}.nan{stroke:var(--bad);stroke-width:2}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:0;padding:0;list-style:none;
color:var(--muted);font-size:.82rem}
.key li{min-width:0;overflow-wrap:anywhere}
.key i,td i{display:inline-block;width:.75em;height:.75em;border-radius:2px;margin-right:.4em;
background:var(--c)}
.key .redo{background:var(--redo);outline:1px solid var(--bad)}
.key .away{background:var(--away);outline:1px solid var(--axis)}
.key .fail{background:var(--bad);border-radius:50%}
.time.plot{height:250px;margin-bottom:2.5rem}
.time .lane{right:100%;margin-right:.5em;transform:translateY(-50%)}
.time .gap{transform:translateX(-50%);top:.3em}
.span{stroke:var(--c);stroke-width:7}.fail{stroke:var(--bad);stroke-width:8;stroke-linecap:round}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:.86rem}
th,td{text-align:left;padding:.4rem .75rem;border-bottom:1px solid var(--rule);vertical-align:top}
tr:last-child td{border-bottom:0}th{color:var(--muted);font-weight:600;white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.t{white-space:nowrap}
td.w{overflow-wrap:anywhere;min-width:12rem}th.wide{width:99%}
details>summary{cursor:pointer;margin:1rem 0 .7rem;font-weight:600}
section{margin-top:2.4rem;border-top:2px solid var(--rule);padding-top:1.4rem}
footer{margin-top:2.5rem;color:var(--muted);font-size:.82rem}
@media(max-width:860px){.rows thead{display:none}
.rows tr{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,270px),1fr));
column-gap:2rem;padding:.5rem .75rem;border-bottom:1px solid var(--rule)}
.rows tr:last-child{border-bottom:0}
.rows td{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.1rem 0;
text-align:right;white-space:normal;overflow-wrap:anywhere;min-width:0}
.rows td:empty{display:none}.rows td:first-child{font-weight:600}
.rows td::before{content:attr(data-name);color:var(--muted);text-align:left;white-space:nowrap}}
@media(max-width:560px){body{padding:1rem .75rem 2rem}h1{font-size:1.35rem}
.plot{margin-left:2.9rem;height:165px}.plot .o{display:none}
.tiles{grid-template-columns:1fr 1fr}}
@media print{body{max-width:none;padding:0;font-size:12px}h2{break-after:avoid}
.card,tr,.tiles div{break-inside:avoid}}
"""
)
