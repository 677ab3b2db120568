# ruff: noqa: RUF012 - a config copies its defaults
# mypy: disable-error-code="arg-type,call-arg,list-item,misc"
# (values in these tests are converted when they are set, or are wrong on purpose)
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import torch

from danling.config import Config, Minimum, NotInRunId
from danling.errors import ConfigError


class Optim(Config):
    lr: float = 0.1
    name: str = "sgd"


def test_a_number_below_the_minimum_is_refused():
    class Model(Config):
        layers: Annotated[int, Minimum(1)] = 2
        width: Annotated[int | None, Minimum(1)] = None

    assert Model(width=None).layers == 2
    with pytest.raises(ConfigError, match=r"config\.layers: expected at least 1, got 0"):
        Model(layers=0)


def test_fields_are_collected_over_the_bases_and_may_be_declared_again():
    class Base(Config):
        lr: float = 0.1
        depth: int = 1

    class Mixin(Config):
        width: int = 8

    class Child(Base, Mixin):
        depth: float = 2.5  # type: ignore[assignment]  # another type is meant
        lr = 0.3

    assert Child().to_dict() == {"width": 8, "lr": 0.3, "depth": 2.5}
    assert Base().to_dict() == {"lr": 0.1, "depth": 1}


def test_a_well_known_key_may_get_another_default_and_stays_out_of_the_run_id():
    class Training(Config):
        log_interval: int = 7
        max_epochs = 3

    assert Training().to_dict() == {"log_interval": 7, "max_epochs": 3}
    assert Training(log_interval=9).semantic() == Training().semantic()
    assert Training(max_epochs=4).semantic() != Training().semantic()


def test_defaults_are_never_shared():
    class Model(Config):
        layers: list[int] = [1]
        table: dict[str, list[int]] = {"a": [1]}
        optim: Optim = Optim(lr=0.5)

    one, other = Model(), Model()
    one.layers.append(2)
    one.table["a"].append(2)
    one.optim.lr = 9.0
    Model.layers.append(3)

    assert other.to_dict() == {
        "layers": [1],
        "table": {"a": [1]},
        "optim": {"lr": 0.5, "name": "sgd"},
    }
    assert Model() == other


def test_methods_properties_class_variables_and_private_names_are_no_fields():
    class Model(Config):
        count: ClassVar[int] = 3
        _cache: int = 1
        width: int = 2

        @property
        def area(self) -> int:
            return self.width**2

        def scaled(self, by: int) -> int:
            return self.width * by

    model = Model(width=3)

    assert model.to_dict() == {"width": 3}
    assert (model.area, model.scaled(2), Model.count) == (9, 6, 3)


def test_a_field_without_default_is_required():
    class Inner(Config):
        size: int

    class Model(Config):
        data: Path
        inner: Inner

    assert Model(data="x", inner={"size": 1}).inner.size == 1
    with pytest.raises(ConfigError, match=r"no default: config\.data, config\.inner\.size"):
        Model()
    with pytest.raises(ConfigError, match=r"no default: config\.inner\.size"):
        Model(data="x", inner={"size": 1})["inner"] = {}


def test_a_section_may_contain_its_own_class():
    class Node(Config):
        value: int = 0
        child: Node | None = None

    node = Node(child={"child": {"value": 2}})

    assert node["child.child.value"] == 2


def test_the_class_reads_its_default_and_the_instance_its_value():
    assert Optim.lr == 0.1
    assert Optim(lr=3).lr == 3.0


def refused(message, define):
    with pytest.raises(ConfigError) as caught:
        define()
    assert message in str(caught.value)


def test_a_type_that_cannot_be_saved_is_refused_where_it_is_declared():
    def define():
        class Model(Config):
            act: Callable[[int], int] = abs

    refused("Model.act: a config cannot save values of type", define)


@pytest.mark.parametrize("annotation", [set[int], bytes, dict[int, str], object, torch.dtype])
def test_other_types_that_cannot_be_saved_are_refused(annotation):
    with pytest.raises(ConfigError, match=r"Model\.key"):
        type("Model", (Config,), {"__annotations__": {"key": annotation}, "__module__": __name__})


def test_a_default_of_the_wrong_type_is_refused_where_it_is_declared():
    def define():
        class Model(Config):
            name: str = None  # type: ignore[assignment]

    refused("Model.name: expected a string, got None", define)


def test_a_default_without_annotation_is_refused():
    def define():
        class Model(Config):
            layers = 3

    refused("Model.layers = 3 has no annotation; write layers: int = ...", define)


def test_a_field_with_the_name_of_a_method_is_refused():
    def define():
        class Model(Config):
            items: int = 3  # type: ignore[assignment]

    refused("Model.items: 'items' is an attribute of every config", define)


def test_an_annotation_with_an_unknown_name_is_refused():
    def define():
        class Model(Config):
            thing: Missing = None  # type: ignore[name-defined]  # noqa: F821

    refused("Model: an annotation uses 'Missing', which is not defined", define)


def test_marked_fields_stay_out_of_the_run_id():
    class Inner(Config):
        size: int = 1
        cache: Annotated[str, NotInRunId] = "a"

    class Model(Config):
        folder: Annotated[Path, NotInRunId()] = Path("a")
        loader: Annotated[Mapping[str, Any], NotInRunId("workers")] = {}
        inner: Inner
        several: list[Inner] = []

    plain = Model(several=[{}])
    moved = Model(
        folder="b",
        loader={"workers": 3, "train": {"workers": 4}},
        inner={"cache": "b"},
        several=[{"cache": "b"}],
    )

    assert moved.semantic() == plain.semantic()
    assert Model(inner={"size": 2}).semantic() != Model().semantic()
    assert Model(loader={"size": 2}).semantic() != Model().semantic()
