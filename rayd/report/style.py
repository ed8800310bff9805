"""How the page looks: light under every setting of a browser, one column of text, figures in a grid that becomes one column
on a phone."""

from __future__ import annotations

CSS = """
/* A browser's own dark mode would turn the paper and leave the ink of the figures. */
:root{color-scheme:only light;--ink:#22262b;--soft:#6a727c;--rule:#e4e6ea;--paper:#fff;--ground:#f7f7f5;--blue:#2b5fd9}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main,footer{max-width:1080px;margin:0 auto;padding:0 28px}
header{padding-top:56px}
.kicker{margin:0;color:var(--blue);font-size:14px;font-weight:600;letter-spacing:.02em}
h1{margin:4px 0 0;font-size:clamp(26px,4.4vw,40px);line-height:1.15;letter-spacing:-.02em;font-weight:680}
h2{margin:0 0 6px;font-size:22px;letter-spacing:-.01em;font-weight:650}
.claim{margin-top:26px}
.big{margin:0;font-size:clamp(54px,9vw,92px);line-height:1;letter-spacing:-.04em;font-weight:700}
.big span{font-size:.36em;letter-spacing:-.01em;font-weight:500;color:var(--soft)}
.big.none{font-size:34px;color:var(--soft)}
.under{margin:12px 0 0;color:var(--soft)}
.pill{display:inline-block;margin:18px 0 0;padding:5px 14px;border-radius:99px;background:#eceef1;font-size:15px}
.pill.yes{background:#dff3e9;color:#14563b}.pill.no{background:#fbe3e0;color:#8c2a22}
.pill.undecided{background:#fdf0d8;color:#7a5310}
details{margin-top:10px;color:var(--soft);font-size:14px}summary{cursor:pointer}
details ul{margin:6px 0 0;padding-left:20px}
.facts{display:flex;flex-wrap:wrap;gap:14px 40px;margin:30px 0 0;padding:18px 0}
.facts{border-top:1px solid var(--rule)}
.facts div{display:flex;flex-direction:column}.facts b{font-size:20px;font-weight:620;font-variant-numeric:tabular-nums}
.facts span{color:var(--soft);font-size:13px}
nav{position:sticky;top:0;z-index:2;background:rgba(247,247,245,.94);border-bottom:1px solid var(--rule);overflow-x:auto;
white-space:nowrap;padding:11px max(28px,calc((100% - 1024px)/2))}
nav a{display:inline-block;margin-right:22px;color:var(--soft);font-size:14px;text-decoration:none}
nav a:first-letter{text-transform:uppercase}nav a:hover{color:var(--blue)}
section{margin:26px 0;padding:28px 30px 30px;background:var(--paper);border:1px solid var(--rule);border-radius:14px;
scroll-margin-top:56px}
.lead,.note,.empty{color:var(--soft);margin:0 0 16px;font-size:15px}.note{margin:12px 0 0;font-size:14px}
.empty{margin:8px 0 0}
code{padding:1px 6px;border-radius:5px;background:#f0f1f3;font:13.5px ui-monospace,SFMono-Regular,Menlo,monospace}
pre{margin:0;overflow-x:auto;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace}
img{image-rendering:pixelated;display:block;max-width:100%;height:auto}
svg{display:block;width:100%;height:auto}
figure{margin:0}figcaption{margin-top:8px;color:var(--soft);font-size:13.5px}figcaption b{color:var(--ink);font-weight:600}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:28px 34px;align-items:start}
.grid figure{max-width:460px}.grid img{width:100%;border-radius:6px}
.wide{max-width:780px;margin:0 auto}.narrow{display:none}
.rows{display:grid;gap:18px}.rows img{width:min(100%,780px);border-radius:6px}
.strips{display:grid;grid-template-columns:repeat(auto-fill,minmax(430px,1fr));gap:12px 34px}
.strips.few{grid-template-columns:repeat(auto-fill,minmax(150px,1fr))}
.strip span{display:block;margin-bottom:4px;color:var(--soft);font-size:13.5px}
.strip img{width:min(100%,calc(var(--n)*86px));border-radius:6px}.few .strip img{width:100%}
.table{overflow-x:auto;margin-top:18px}
table{width:100%;border-collapse:collapse;font-size:14.5px;font-variant-numeric:tabular-nums}
th{text-align:left;color:var(--soft);font-weight:500;font-size:13px}
th,td{padding:7px 16px 7px 0;border-bottom:1px solid var(--rule);white-space:nowrap}
tr.own td{font-weight:620;color:var(--blue)}tbody tr:last-child td{border-bottom:0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:8px 24px;margin:14px 0 0;font-size:14.5px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere;font:13.5px/1.6 ui-monospace,SFMono-Regular,Menlo,monospace}
footer{padding-top:10px;padding-bottom:44px;color:var(--soft);font-size:13.5px}
@media(max-width:640px){header,main,footer{padding-left:16px;padding-right:16px}header{padding-top:34px}
nav{padding-left:16px}section{padding:22px 16px;border-radius:12px;margin:16px 0}.strips{grid-template-columns:1fr}
.strips.few{grid-template-columns:repeat(3,1fr);gap:12px}.facts{gap:12px 26px}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:10px}
.wide{display:none}.narrow{display:block}}
@media print{nav{display:none}section{break-inside:avoid;border:0;padding:12px 0}}
"""
