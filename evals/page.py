"""The frame of a report: one HTML page with its own style and script, which may load nothing and run nothing else.

Light or dark as the reader's system has it. Not here: what stands on the page.
"""

from __future__ import annotations

import base64
import hashlib

from .markup import Html, h, join

STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --dim: #646d79; --rule: #c9ced6; --page: #fdfdfc; --soft: #f1f2f0;
  --right: #17753b; --wrong: #b3261e; --link: #1f5fa8;
  --c0: #1f66b0; --c1: #c65f0b; --c2: #1c8249; --c3: #a3338f; --c4: #8a6d00; --c5: #b3261e; --c6: #4b5563; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --dim: #98a1ad; --rule: #3c434d; --page: #14171b; --soft: #1e2227;
  --right: #5fce8a; --wrong: #ff8b82; --link: #86b8f0;
  --c0: #74aef0; --c1: #f5a25d; --c2: #63cf90; --c3: #df8cd0; --c4: #d9bd4a; --c5: #ff8b82; --c6: #a8b1bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 60rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1.02rem; margin: 2rem 0 .4rem; } h4 { font-size: .95rem; margin: 1rem 0 .3rem; font-weight: 600; }
p { margin: .5rem 0; max-width: 44rem; } .note, small, figcaption, caption, .line { color: var(--dim); }
.note, figcaption, caption { font-size: .9rem; } a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .93rem; margin-top: 1.2rem; }
.big { font-size: 3.2rem; font-weight: 650; line-height: 1.1; letter-spacing: -.02em; margin: 1.2rem 0 .1rem; }
.label { border-left: 3px solid var(--c1); padding: .1rem 0 .1rem .8rem; margin: 1rem 0; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .28rem .9rem .28rem 0; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; vertical-align: bottom; } .n { text-align: right; padding-left: .5rem; } td.n { white-space: nowrap; }
figure { margin: 1.2rem 0; } figure svg { max-width: 100%; height: auto; display: block; }
figure svg text { font-family: inherit !important; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .88em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .7rem .9rem; border-radius: 4px;
  margin: .5rem 0; max-height: 32rem; overflow-y: auto; }
pre.question { font-family: inherit; font-size: 1em; } code { overflow-wrap: anywhere; }
summary { cursor: pointer; } .problem { border-bottom: 1px solid var(--rule); padding: .45rem 0; }
.problem > summary { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.problem[open] { padding-bottom: 1.2rem; } .problem section, .problem dl, .problem pre.question { margin-left: 1.1rem; }
.draw { margin: .2rem 0 .2rem 1.1rem; font-size: .95rem; } .draw ul { margin: .3rem 0 .8rem; padding-left: 1.2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; } dt { color: var(--dim); } dd { margin: 0; }
.right { color: var(--right); font-weight: 700; } .wrong { color: var(--wrong); font-weight: 700; }
.filters { display: flex; flex-wrap: wrap; gap: .4rem; margin: .8rem 0; } [hidden] { display: none !important; }
button { font: inherit; font-size: .88rem; color: inherit; background: var(--soft); border: 1px solid var(--rule);
  border-radius: 1rem; padding: .15rem .75rem; cursor: pointer; }
button[aria-pressed=true] { background: var(--ink); color: var(--page); }
button[aria-pressed=true] small { color: inherit; }
@media print { .filters { display: none; } pre { max-height: none; } }
"""

SCRIPT = """
for (const browser of document.querySelectorAll(".browser")) {
  const bar = browser.querySelector(".filters"), buttons = bar.querySelectorAll("button");
  bar.hidden = false;
  bar.addEventListener("click", event => {
    const pressed = event.target.closest("button");
    if (!pressed) return;
    for (const button of buttons) button.setAttribute("aria-pressed", button === pressed);
    for (const problem of browser.querySelectorAll(".problem"))
      problem.hidden = !problem.dataset.tags.split(" ").includes(pressed.dataset.filter);
  });
}
"""


def page(title: str, *body: Html | None) -> str:
    """The whole file. Its policy lets no other script run, and nothing load, whatever stands in ``body``."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=policy),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("title", title),
        h("style", Html(STYLE)),
    )
    whole = h("html", head, h("body", join(*body), h("script", Html(SCRIPT))), lang="en")
    return f"<!doctype html>\n{whole}\n"
