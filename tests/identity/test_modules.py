"""Which modules are the project's, which came late, and the code that is in no file."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from danling.identity.modules import (
    ImportWatch,
    main_folder,
    project_files,
    project_folder,
    typed_code,
)


def add_module(monkeypatch: pytest.MonkeyPatch, name: str, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x = 1\n")
    module = ModuleType(name)
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, name, module)
    return file


def test_modules_of_the_project_are_told_from_installed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = add_module(monkeypatch, "own", tmp_path / "package" / "own.py")
    add_module(monkeypatch, "elsewhere", tmp_path.parent / "elsewhere.py")
    add_module(monkeypatch, "library", tmp_path / "v" / "site-packages" / "library.py")
    add_module(monkeypatch, "debian", tmp_path / "dist-packages" / "debian.py")
    add_module(monkeypatch, "standard", tmp_path / "python" / "lib" / "standard.py")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "python"))

    assert project_files(tmp_path) == {own}


def test_a_lazy_module_is_not_woken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"woken by {name}")

    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))

    assert project_files(tmp_path) == set()


def test_each_module_that_comes_late_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add_module(monkeypatch, "early", tmp_path / "early.py")
    watch = ImportWatch()
    late = add_module(monkeypatch, "late", tmp_path / "late.py")
    add_module(monkeypatch, "elsewhere", tmp_path.parent / "elsewhere.py")

    assert watch.new_files(tmp_path) == [late]
    assert watch.new_files(tmp_path) == []


def test_the_folder_of_the_project_is_the_repository_or_that_of_the_script(tmp_path: Path):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert project_folder(deep) == deep

    (tmp_path / "a" / ".git").mkdir()

    assert project_folder(deep) == tmp_path / "a"


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["python", "-c", "print(1)", "x"], {"<command>": "print(1)"}),
        (["python", "-W", "error", "-X", "dev", "-uc", "print(1)"], {"<command>": "print(1)"}),
        (["python", "-"], None),
        (["python"], None),
        (["python", "-c", "from multiprocessing.spawn import x", "--multiprocessing-fork"], None),
        (["python", "train.py", "-c", "config"], None),
    ],
)
def test_without_a_script_the_command_is_the_code(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], code: dict[str, str] | None
):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    monkeypatch.setattr(sys, "orig_argv", argv)

    assert typed_code() == code


def test_without_a_script_the_current_folder_is_that_of_the_main_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)

    assert main_folder() == tmp_path


def test_a_module_behind_links_is_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder, or the file, or both may be links; the folder is looked up once."""
    real = tmp_path / "real"
    real.mkdir()
    for name in ("a", "b"):
        (real / f"{name}.py").write_text("")
    (tmp_path / "folder").symlink_to(real)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "link.py").symlink_to(tmp_path / "folder" / "b.py")
    for number, file in enumerate(["folder/a.py", "other/link.py", "real/a.py"]):
        module = ModuleType(f"behind_{number}")
        module.__file__ = str(tmp_path / file)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    names = [f"behind_{number}" for number in range(3)]

    assert project_files(tmp_path.resolve(), names) == {
        real.resolve() / "a.py",
        real.resolve() / "b.py",
    }
