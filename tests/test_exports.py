"""What `import danling` offers, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
import traceback
from types import ModuleType

import pytest

import danling
import danling.callbacks

PACKAGES = [danling, danling.callbacks]


def run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_exported_name_can_be_imported_and_is_listed(package: ModuleType):
    resolved = {name: getattr(package, name) for name in package.__all__}

    assert package.__all__ == sorted(package.__all__)
    assert None not in resolved.values()
    assert set(dir(package)) >= set(package.__all__)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_lazy_name_is_exported(package: ModuleType):
    lazy = set(package._MODULES)

    assert lazy <= set(package.__all__)


def test_each_ready_made_callback_has_its_own_file():
    modules = list(danling.callbacks._MODULES.values())

    assert sorted(modules) == sorted(set(modules))
    for name, module in danling.callbacks._MODULES.items():
        assert getattr(danling.callbacks, name).__module__ == f"danling.callbacks.{module}"


def test_importing_danling_loads_no_heavy_dependency():
    program = (
        "import sys, danling, danling.callbacks, danling.config, danling.callback; "
        "print([m for m in ('torch', 'accelerate', 'tensorboard', 'git', 'numpy', 'yaml')"
        " if m in sys.modules])"
    )

    assert run(program) == "[]"


def test_one_callback_is_imported_without_the_others():
    program = (
        "import sys; from danling.callbacks import EarlyStopping; "
        "print([m for m in sys.modules if m.split('.')[0] == 'tensorboard'"
        " or m == 'danling.callbacks.tensorboard'])"
    )

    assert run(program) == "[]"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_misspelled_name_is_answered_with_the_nearest(package: ModuleType):
    misspelled, meant = {
        "danling": ("AcclerateRunner", "AccelerateRunner"),
        "danling.callbacks": ("EarlyStoping", "EarlyStopping"),
    }[package.__name__]

    with pytest.raises(AttributeError, match=f"did you mean '{meant}'"):
        getattr(package, misspelled)


def test_importing_a_name_that_does_not_exist_is_an_import_error():
    with pytest.raises(ImportError, match="cannot import name 'AcclerateRunner'") as caught:
        exec("from danling import AcclerateRunner")

    if sys.version_info >= (3, 12):  # Python itself looks through __dir__ since then
        assert "Did you mean: 'AccelerateRunner'?" in "".join(
            traceback.format_exception(caught.value)
        )


def test_the_folder_refuses_to_be_imported_under_another_name():
    program = "import sys\ntry: import callbacks\nexcept ImportError as error: print(error)"

    assert run(program) == "import danling.callbacks instead: this folder is that package"
