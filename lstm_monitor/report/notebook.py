"""Lines and a picture as a page for a notebook."""

from __future__ import annotations

import base64
import html


def page(text: str, png: bytes | None, shows: str) -> str:
    """The lines, and the picture if there is one, as HTML; ``shows`` says what is on it."""
    lines = f'<pre style="line-height:1.35">{html.escape(text)}</pre>'
    if png is None:
        return f"<div>{lines}</div>"
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<div>{lines}<img alt="{shows}" style="max-width:100%" src="{source}"></div>'
