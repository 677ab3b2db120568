"""Runs for papers and people: tables, and pages that need nothing but a browser.

Begin with `tables`.

- `tables`: rows as CSV, JSON, Markdown and LaTeX; means over seeds with the best in bold.
- `html`: a self-contained page, and what a notebook shows.
- `charts`: curves and bands as SVG.
"""

from __future__ import annotations

__all__: list[str] = []
