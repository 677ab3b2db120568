"""What is shown besides numbers, as the servers decode it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from danling.tensorboard import media
from danling.tensorboard.event_file import EventWriter
from tests.support.tensorboard_server import Server

PATCH = "# A title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```diff\n+ lr: 1e-3 <script>\n```"


@pytest.fixture(scope="module", params=[True, False], ids=["rust", "python"])
def server(request, tmp_path_factory) -> Iterator[Server]:
    run = tmp_path_factory.mktemp("media") / "logs" / "run"
    run.mkdir(parents=True)
    tone = torch.sin(torch.arange(8000) * 0.3)
    labels, scores = torch.tensor([0, 0, 1, 1]), torch.tensor([0.1, 0.6, 0.4, 0.9])
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    with EventWriter(run) as writer:
        values = [
            media.text("note", PATCH),
            media.image("gradient", torch.linspace(0, 1, 20).reshape(4, 5)),
            media.audio("tone", tone, 8000),
            media.histogram("numbers", torch.arange(300.0)),
            media.pr_curve("digit", labels, scores),
        ]
        writer.add(values, step=3)
        writer.add_graph(media.graph(model, torch.zeros(1, 3)))
    media.write_embedding(run, "points", torch.eye(3), ["one", "two\t2", "three\n3"], step=3)
    with Server(run.parent, fast=request.param) as running:
        running.wait_until(lambda: running.get("plugin/graphs/info")["run"]["run_graph"])
        yield running


def test_a_text_is_markdown_under_its_own_tag(server: Server):
    assert server.get("plugin/text/tags") == {"run": ["note"]}
    html = server.text("run", "note")
    assert "<h1>A title</h1>" in html
    assert "<table>" in html
    assert "lr: 1e-3 &lt;script&gt;" in html


def test_an_image_is_there_to_the_pixel(server: Server):
    [shown] = server.get("plugin/images/images", run="run", tag="gradient", sample="0")
    png = server.download(f"plugin/images/individualImage?{shown['query']}")

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))

    assert pixels.tolist() == (torch.linspace(0, 1, 20) * 255).byte().reshape(4, 5).tolist()


def test_a_sound_can_be_heard(server: Server):
    [shown] = server.get("plugin/audio/audio", run="run", tag="tone", sample="0")

    wave = server.download(f"plugin/audio/individualAudio?{shown['query']}")

    assert wave.startswith(b"RIFF")
    assert len(wave) == 44 + 2 * 8000


def test_a_histogram_has_all_its_values(server: Server):
    [[_, step, bins]] = server.get("plugin/histograms/histograms", run="run", tag="numbers")

    assert step == 3
    assert len(bins) == 30
    assert sum(count for *_, count in bins) == 300
    assert (bins[0][0], bins[-1][1]) == (0, 299)


def test_a_curve_has_its_precision_and_recall(server: Server):
    [point] = server.get("plugin/pr_curves/pr_curves", run="run", tag="digit")["run"]

    assert point["precision"][0] == 0.5
    assert point["recall"][0] == 1.0
    assert point["true_positives"][0] == 2


def test_the_graph_names_the_layers(server: Server):
    assert b"Linear" in server.download("plugin/graphs/graph", run="run")


def test_points_have_their_labels(server: Server):
    [points] = server.get("plugin/projector/info", run="run")["embeddings"]

    labels = server.download("plugin/projector/metadata", run="run", name=points["tensorName"])

    assert points["tensorShape"] == [3, 3]
    assert labels.decode().splitlines() == ["one", "two 2", "three 3"]


@pytest.mark.parametrize(
    ("shape", "size"),
    [((4, 5), (5, 4)), ((1, 4, 5), (5, 4)), ((3, 4, 5), (5, 4)), ((6, 5, 3), (5, 6))],
)
@pytest.mark.parametrize("make", [torch.rand, np.zeros, lambda s: torch.rand(s).bfloat16()])
def test_images_of_every_layout_and_library_are_accepted(make, shape, size):
    value = media.image("sample", make(shape))

    assert (value.image.width, value.image.height) == size


def test_a_batch_of_images_is_a_grid():
    value = media.image("samples", torch.rand(16, 1, 8, 8))

    assert (value.image.width, value.image.height) == (64, 16)


def test_a_pil_image_is_accepted():
    value = media.image("sample", Image.new("RGB", (5, 4), "red"))

    assert (value.image.width, value.image.height) == (5, 4)


def test_an_image_of_another_shape_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"'sample' has the shape \(2, 2, 2, 2, 2\)"):
        media.image("sample", torch.zeros(2, 2, 2, 2, 2))


def test_a_figure_is_its_png():
    class Figure:
        def savefig(self, file: io.BytesIO, format: str) -> None:
            Image.new("RGB", (7, 6), "red").save(file, format)

    value = media.figure("curve", Figure())

    assert (value.image.width, value.image.height) == (7, 6)
    assert media.picture(value).getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("values", "count"),
    [
        (torch.full((10,), 3.0), 10),
        (torch.tensor([]), 0),
        (torch.tensor([1.0, float("nan"), float("inf"), 2.0]), 2),
        (torch.tensor([float("nan")]), 0),
        (torch.arange(5), 5),
        (torch.rand(10, dtype=torch.bfloat16), 10),
        (torch.tensor([True, False]), 2),
    ],
    ids=["equal", "none", "not finite", "only nan", "integers", "bfloat16", "booleans"],
)
def test_a_histogram_counts_every_finite_value(values: torch.Tensor, count: int):
    from tensorboard.util.tensor_util import make_ndarray

    table = make_ndarray(media.histogram("values", values).tensor)

    assert table.shape == (30, 3)
    assert table[:, 2].sum() == count


def test_tracing_the_graph_leaves_the_model_and_the_random_stream_as_they_were():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()

    media.graph(model, torch.rand(4, 3, generator=torch.Generator()))

    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_an_embedding_is_listed_once_however_often_it_is_written(tmp_path: Path):
    for _ in range(2):
        media.write_embedding(tmp_path, "a b/c", torch.eye(2), step=1)
    media.write_embedding(tmp_path, "a b/c", torch.eye(2), step=2)

    listing = (tmp_path / "projector_config.pbtxt").read_text()

    assert listing.count("tensor_name") == 2
    assert sorted(path.name for path in (tmp_path / "embeddings").iterdir()) == [
        "a_b_c-1.tsv",
        "a_b_c-2.tsv",
    ]


def test_labels_that_do_not_fit_are_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="3 points and 1 labels"):
        media.write_embedding(tmp_path, "points", torch.eye(3), ["one"])
