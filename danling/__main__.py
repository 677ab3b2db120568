"""`python -m danling` is the command `danling`."""

from __future__ import annotations

from danling.cli.main import main

raise SystemExit(main())
