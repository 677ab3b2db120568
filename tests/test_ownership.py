"""Which directory a run works in, and that a project is told from its runs by what they say."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.repositories import *  # noqa: F403
from tests.resume_runs import STEPS, interrupted, log, record, trained

