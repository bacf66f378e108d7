"""How the page of a report looks, in light and in dark, on paper and on a phone."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --sheet: #fff; --ink: #1d2229; --soft: #5d6672; --line: #e1e5ea;
  --accent: #2166ac; --warm: #b3471d; --warn: #fdf1eb; --good: #1f7a4d; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1216; --sheet: #171b21; --ink: #e3e7ec; --soft: #97a1ad;
  --line: #2a3039; --accent: #7db2e8; --warm: #f0936b; --warn: #2a1d17; --good: #6cc79a; }
  figure img { filter: invert(1) hue-rotate(180deg) saturate(1.15); mix-blend-mode: screen; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
a:focus-visible, .scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
header, main, nav, footer { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.2rem; padding-bottom: .6rem; }
header p { margin: .2rem 0; color: var(--soft); }
.eyebrow { text-transform: uppercase; letter-spacing: .09em; font-size: .74rem; font-weight: 600; }
h1 { font-size: clamp(1.4rem, 3.4vw, 2.1rem); line-height: 1.2; margin: .1rem 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 0; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .4rem; padding: 0; margin: .6rem 0 1rem;
  max-height: 11rem; overflow: auto; }
nav a { display: block; padding: .18rem .7rem; border: 1px solid var(--line); border-radius: 99px;
  background: var(--sheet); font-size: .86rem; }
section { background: var(--sheet); border: 1px solid var(--line); border-radius: 12px; padding: 1.3rem 1.5rem 1.5rem;
  margin: 0 0 1.2rem; scroll-margin-top: .8rem; }
section > p.kind { margin: .1rem 0 .8rem; color: var(--soft); }
section.alarms { background: var(--warn); border-color: var(--warm); }
section.alarms h2 { color: var(--warm); }
.trust { border-left: 4px solid var(--good); padding: .3rem 0 .3rem .9rem; margin: .6rem 0; }
ul { padding-left: 1.2rem; margin: .5rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; border-radius: 6px; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .3rem; overflow: hidden; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: 0 1.4rem;
  align-items: start; }
.wide { margin: .4rem 0 1rem; max-width: 74rem; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; min-width: 60%; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: .3rem; }
th, td { padding: .32rem .55rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; font-weight: 500; }
thead th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; line-height: 1.25; }
tbody tr:hover { background: color-mix(in srgb, var(--accent) 7%, transparent); }
details { margin-top: .9rem; }
summary { cursor: pointer; color: var(--accent); }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .3rem 1.2rem; margin: .6rem 0; }
dt { font-weight: 500; } dd { margin: 0; color: var(--soft); }
footer { color: var(--soft); font-size: .85rem; padding-bottom: 2.5rem; }
@media (max-width: 34rem) { section { padding: 1rem; border-radius: 0; margin-left: -1.25rem; margin-right: -1.25rem;
  border-left: 0; border-right: 0; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
  .wide { overflow-x: auto; } .wide img { width: 46rem; max-width: none; } }
@media print { body { background: #fff; } section { break-inside: avoid-page; border: 0; padding: 0; }
  nav { display: none; } }
"""
