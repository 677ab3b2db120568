"""Callbacks that an installed package offers: found by name, imported only when named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import danling as dl
from danling import defaults
from danling.defaults import callback_class, callback_names
from danling.testing import TinyRunner

ROOT = Path(__file__).resolve().parent.parent

TRAINING = """
import sys
import danling as dl
from danling.testing import TinyRunner

plain = TinyRunner({})
print(plain.run_id, "danling_heartbeat" in sys.modules)
runner = TinyRunner(dl.Config.parse(), default_callbacks=True)
runner.train()
print(runner.run_id, "danling_heartbeat" in sys.modules)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip has installed the plug-in of the examples into, without a network."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site"
    shutil.copytree(ROOT / "examples" / "plugin", source)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options, str(source)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr
    return target


def with_plugin(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the arguments, in a process that finds the plug-in and this library."""
    paths = os.pathsep.join([str(installed), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_callback_of_an_installed_package_is_used_by_its_name(installed: Path):
    Path("train.py").write_text(TRAINING)
    Path("train.yaml").write_text("callbacks:\n  - heartbeat: {every: 5 steps}\n")
    arguments = ["--config", "train.yaml", "--callbacks.heartbeat.every", "3 steps"]

    finished = with_plugin(installed, "train.py", *arguments)

    assert finished.returncode == 0, finished.stderr
    (run_id, before), (same_id, after) = (line.split() for line in finished.stdout.splitlines())
    assert (before, after) == ("False", "True")
    assert run_id == same_id  # it only watches
    (path,) = Path("experiments").glob("*/heartbeat.json")
    assert json.loads(path.read_text())["global_step"] == 6


def test_a_misspelt_name_or_argument_is_answered_with_that_of_the_package(
    installed: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(installed)

    with pytest.raises(dl.ConfigError, match=r"no callback 'hartbeat'; did you mean 'heartbeat'\?"):
        TinyRunner({"callbacks": {"hartbeat": {"every": "5 steps"}}})
    with pytest.raises(dl.ConfigError, match=r"has no argument 'evry'; did you mean 'every'\?"):
        TinyRunner({"callbacks": {"heartbeat": {"evry": "5 steps"}}})


def test_the_plug_in_s_own_tests_run(installed: Path):
    tests = str(ROOT / "examples" / "plugin" / "tests")
    options = ["-q", "-n0", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-c", os.devnull]

    chosen = ["-k", "period or round_trips or random"]  # all take half a minute

    finished = with_plugin(installed, "-m", "pytest", *options, *chosen, tests)

    assert finished.returncode == 0, finished.stdout
    assert "3 passed" in finished.stdout


# Packages as pip leaves them: a folder of metadata beside modules


def offer(site: Path, package: str, name: str, value: str) -> None:
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[danling.callbacks]\n{name} = {value}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(folder)
    return folder


def test_ready_made_callbacks_ask_no_package(site: Path, monkeypatch: pytest.MonkeyPatch):
    offer(site, "thief", "early_stopping", "nowhere:EarlyStopping")
    asked: list[object] = []

    def ask(**keys: object) -> list[object]:
        asked.append(keys)
        return []

    monkeypatch.setattr(defaults, "entry_points", ask)

    TinyRunner({"callbacks": ["early_stopping"]}).train()
    TinyRunner().train()

    assert asked == []


def test_two_packages_that_offer_one_name_are_an_error_with_the_way_out(site: Path):
    offer(site, "one", "beat", "one:Beat")
    offer(site, "two", "beat", "two:Beat")

    with pytest.raises(dl.ConfigError, match=r"offered by one 1\.0 and two 1\.0; write which") as e:
        callback_class("beat")

    assert "{beat: {callback: '" in str(e.value)


def test_a_package_that_cannot_be_imported_is_named(site: Path):
    offer(site, "broken", "beat", "is_not_there:Beat")

    with pytest.raises(
        dl.ConfigError, match=r"'beat' of broken 1\.0 cannot be imported from is_no"
    ):
        TinyRunner({"callbacks": ["beat"]})


def test_what_is_no_callback_is_refused(site: Path):
    offer(site, "odd", "beat", "json:loads")

    with pytest.raises(dl.ConfigError, match=r"'beat' is <function loads .* no class of danling"):
        callback_class("beat")


def test_names_of_packages_come_after_those_that_are_there(site: Path):
    offer(site, "kind", "zz_beat", "kind:Beat")

    assert callback_names()[-1] == "zz_beat"
    assert callback_names()[0] == "backbone_finetuning"
