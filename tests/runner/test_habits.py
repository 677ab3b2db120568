"""Names that other libraries use are answered with the names that the runner has."""

from __future__ import annotations

import subprocess
import sys

import pytest

import danling as dl
from danling.testing import TinyRunner


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("fit", r"train\(\)"),
        ("training_step", "train_step"),
        ("validation_step", "evaluate_step"),
        ("configure_optimizers", "optimizer and scheduler"),
        ("current_epoch", "epoch"),
        ("globel_step", "did you mean 'global_step'"),
        ("modle", "did you mean 'model'"),
    ],
)
def test_the_name_that_another_library_has_is_answered_with_ours(name: str, here: str) -> None:
    with pytest.raises(AttributeError, match=f"'TinyRunner' has no attribute {name!r}: .*{here}"):
        getattr(TinyRunner(), name)


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("training_step", "train_step"),
        ("validation_step", "evaluate_step"),
        ("test_step", "evaluate_step"),
        ("prediction_step", "predict_step"),
    ],
)
def test_a_step_that_nobody_would_call_is_refused_where_it_is_defined(name: str, here: str) -> None:
    with pytest.raises(
        TypeError, match=rf"^Ported.{name} would never be called: here it is {here}"
    ):
        type("Ported", (dl.AccelerateRunner,), {name: lambda self, batch: None})


def test_an_attribute_error_in_a_property_is_raised_as_it_is() -> None:
    class Broken(TinyRunner):
        @property
        def temperature(self) -> float:
            return self.config.no_such_thing.value

    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = Broken().temperature
    assert not hasattr(Broken(), "_no_such_thing")


def test_the_callbacks_are_an_attribute_of_the_package() -> None:
    program = (
        "import sys, danling as dl; dl.callbacks; assert 'torch' not in sys.modules; "
        "print(dl.callbacks.EarlyStopping.name)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert (done.stdout.strip(), done.stderr) == ("early_stopping", "")
