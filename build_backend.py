"""setuptools, with an editable install that type checkers can read, and links in the README.

The README links files of the repository as a checkout has them. A package index knows no such
files: the README of the metadata has the addresses that they have on the repository's site.

The files of `danling.callbacks` are in `callbacks/`. In an editable install setuptools maps them
with an import hook, which mypy and pyright do not run: to them, nothing is installed (setuptools
issue 3518). Here the install is a path instead: the folder `.editable`, which holds nothing but a
link to `danling`. The checkout itself would do, too, but it would also offer its `tests`,
`examples` and `callbacks` to every project of the environment.

A checkout without symbolic links (git's default on Windows) gets the import hook of setuptools, and
so does an installation that asks for a mode of setuptools with `--config-settings`.
"""

from __future__ import annotations

import os
import re
import tomllib
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZipFile

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the other hooks of PEP 517 are those of setuptools

Settings = dict[str, str | list[str] | None]

ROOT = Path(__file__).resolve().parent
WHEEL = """\
Wheel-Version: 1.0
Generator: danling build_backend
Root-Is-Purelib: true
Tag: py3-none-any
"""


def build_wheel(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel, and return its file name (PEP 517)."""
    write_readme()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Settings | None = None) -> str:
    """Build the sdist, and return its file name (PEP 517)."""
    write_readme()
    return build_meta.build_sdist(sdist_directory, config_settings)


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Settings | None = None
) -> str:
    """Write the metadata of the wheel, and return their folder (PEP 517)."""
    write_readme()
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: Settings | None = None
) -> str:
    """Write the metadata of an editable install, and return their folder (PEP 660)."""
    write_readme()
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def write_readme() -> Path:
    """Write the README of the metadata, and return its path."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project["urls"]["Repository"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = repository.replace("github.com", "raw.githubusercontent.com") + "/main/"
    text = re.sub(r"(!\[[^]]*\]\()(?!\w+:)", rf"\g<1>{pictures}", text)
    text = re.sub(r"(?<!!)(\[[^]]*\]\()(?!\w+:|#)", rf"\g<1>{repository}/blob/main/", text)
    target = ROOT / ".index" / "README.md"
    target.parent.mkdir(exist_ok=True)
    (target.parent / ".gitignore").write_text("*\n")
    target.write_text(text, encoding="utf-8")
    return target


def build_editable(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel of an editable install, and return its file name (PEP 660)."""
    write_readme()
    path = _folder_with_a_link()
    if config_settings or path is None:
        return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    with TemporaryDirectory() as scratch:
        info = build_meta.prepare_metadata_for_build_wheel(scratch)
        metadata = [file for file in Path(scratch, info).rglob("*") if file.is_file()]
        files = {file.relative_to(scratch).as_posix(): file.read_bytes() for file in metadata}
    files[f"{info}/WHEEL"] = WHEEL.encode()
    files["danling.pth"] = os.fsencode(path) + b"\n"
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD").encode()
    name = f"{info.removesuffix('.dist-info')}-0.editable-py3-none-any.whl"
    with ZipFile(Path(wheel_directory, name), "w", ZIP_DEFLATED) as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
    return name


def _folder_with_a_link() -> Path | None:
    """A folder of the checkout in which there is `danling` alone; None without symbolic links."""
    folder = ROOT / ".editable"
    link = folder / "danling"
    if not (ROOT / "danling" / "callbacks" / "__init__.py").is_file():
        return None  # git has made a text file of the link
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    try:
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..", "danling"), target_is_directory=True)
    except OSError:
        return None
    return folder


def _record(files: dict[str, bytes], record: str) -> str:
    """The list of files that a wheel holds, as the wheel specification asks for it."""
    lines = []
    for file, content in files.items():
        digest = urlsafe_b64encode(sha256(content).digest()).decode().rstrip("=")
        lines.append(f"{file},sha256={digest},{len(content)}")
    return "\n".join([*lines, f"{record},,", ""])
