"""Values of an event that are no numbers, made from texts, tensors and figures.

Each function gives a `Summary.Value` for `EventWriter.add`. What needs torch's encoders imports
`torch.utils.tensorboard` on first use.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from danling.files.atomic import write_text

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch import Tensor, nn

__all__ = [
    "audio",
    "figure",
    "graph",
    "histogram",
    "image",
    "picture",
    "pr_curve",
    "text",
    "write_embedding",
]


_BINS: Final = 30  # TensorBoard draws as many


def text(tag: str, markdown: str) -> Summary.Value:
    """A text, shown as Markdown.

    It is a tensor without dimensions: torch's `add_text` makes one of one dimension, which
    TensorBoard wraps into a table.

    Example:
        >>> text("note", "**hello**").tensor.string_val
        [b'**hello**']
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.text.metadata import create_summary_metadata

    encoded = markdown.encode(errors="replace")
    metadata = create_summary_metadata(display_name=None, description=None)
    return Summary.Value(
        tag=tag, metadata=metadata, tensor=TensorProto(dtype=DT_STRING, string_val=[encoded])
    )


def image(tag: str, pixels: Any) -> Summary.Value:
    """An image, or a grid of them: floats from 0 to 1, or integers from 0 to 255.

    Args:
        tag: The tag under which it is shown.
        pixels: A tensor, an array or a PIL image of shape (height, width), (channels, height,
            width), (count, channels, height, width), or (height, width, channels) where the
            height is no number of channels.

    Raises:
        ValueError: It has another shape.

    Example:
        >>> import torch
        >>> image("sample", torch.rand(3, 4, 5)).image.width
        5
    """
    import numpy as np
    from torch.utils.tensorboard import summary

    array = _host(pixels) if hasattr(pixels, "detach") else np.asarray(pixels)
    shape = tuple(array.shape)
    layouts = {2: "HW", 3: "CHW", 4: "NCHW"}
    if len(shape) not in layouts:
        raise ValueError(f"the image {tag!r} has the shape {shape}: give 2, 3 or 4 dimensions")
    layout = layouts[len(shape)]
    is_pil = not hasattr(pixels, "shape")
    if len(shape) == 3 and (is_pil or shape[0] not in (1, 3, 4)) and shape[-1] in (1, 3, 4):
        layout = "HWC"
    encode: Any = summary.image
    return encode(tag, array, dataformats=layout).value[0]


def figure(tag: str, plot: Any) -> Summary.Value:
    """A figure of matplotlib, or anything with `savefig`, as a PNG; it stays open.

    Example:
        >>> figure("curve", plt.gcf())  # doctest: +SKIP
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    buffer = io.BytesIO()
    plot.savefig(buffer, format="png")
    png = buffer.getvalue()
    width, height = (int.from_bytes(png[place : place + 4], "big") for place in (16, 20))
    encoded = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary.Value(tag=tag, image=encoded)


def picture(value: Summary.Value) -> Image:
    """The image of PIL that is in a value made by `image` or `figure`.

    Example:
        >>> import torch
        >>> picture(image("sample", torch.rand(3, 4, 5))).size
        (5, 4)
    """
    from PIL import Image

    return Image.open(io.BytesIO(value.image.encoded_image_string)).convert("RGB")


def audio(tag: str, samples: Tensor, sample_rate: int = 44_100) -> Summary.Value:
    """A sound of one channel.

    Args:
        tag: The tag under which it is shown.
        samples: The samples, from -1 to 1.
        sample_rate: The number of samples per second.

    Example:
        >>> import torch
        >>> audio("tone", torch.sin(torch.arange(100) * 0.1), 8000).audio.length_frames
        100
    """
    from torch.utils.tensorboard import summary

    encode: Any = summary.audio
    return encode(tag, _host(samples).reshape(1, -1), sample_rate=sample_rate).value[0]


def histogram(tag: str, values: Tensor) -> Summary.Value:
    """A histogram of values, in 30 bins, which are counted on the device of the values.

    NaN and infinities have no bin and are left out.

    Example:
        >>> import torch
        >>> value = histogram("weights", torch.arange(60.0))
        >>> value.tensor.tensor_shape.dim[0].size
        30
    """
    import torch
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.histogram.metadata import create_summary_metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    tensor = torch.as_tensor(values).detach()
    flat = (tensor.to_dense() if tensor.is_sparse else tensor).flatten().float()
    flat = flat[flat.isfinite()]
    low, high = (flat.min().item(), flat.max().item()) if flat.numel() else (0.0, 0.0)
    if low == high:  # one value, or none: a bin of no width around it
        edges = torch.full((_BINS + 1,), low, dtype=torch.float64)
        counts = torch.zeros(_BINS, dtype=torch.float64)
        counts[-1] = flat.numel()
    else:
        edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64)
        counts = torch.histc(flat, _BINS, low, high).double().cpu()
    table = torch.stack((edges[:-1], edges[1:], counts), dim=1)
    metadata = create_summary_metadata(display_name=None, description=None)
    return Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(table.numpy()))


def pr_curve(tag: str, labels: Tensor, scores: Tensor) -> Summary.Value:
    """The precision of a binary classifier against its recall, for every threshold.

    Args:
        tag: The tag under which it is shown.
        labels: The truth, 0 or 1.
        scores: The predicted probabilities, from 0 to 1.

    Example:
        >>> import torch
        >>> pr_curve("digit 3", torch.tensor([0, 1]), torch.tensor([0.2, 0.9])).tag
        'digit 3'
    """
    from torch.utils.tensorboard import summary

    truth, predicted = _host(labels).flatten().numpy(), _host(scores).flatten().numpy()
    encode: Any = summary.pr_curve
    return encode(tag, truth, predicted).value[0]


def graph(model: nn.Module, inputs: Any) -> bytes:
    """The graph of a model as a serialised `GraphDef`, traced with an example of its input.

    The model runs once, in evaluation mode and with random streams of its own.

    Raises:
        Exception: Whatever the tracer cannot follow.
    """
    import torch
    from torch.utils.tensorboard import _pytorch_graph

    training = {name for name, module in model.named_modules() if module.training}
    devices = {tensor.get_device() for tensor in model.parameters() if tensor.is_cuda}
    trace: Any = _pytorch_graph.graph
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(list(devices)), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            traced, _ = trace(model.eval(), inputs)
    finally:
        for name, module in model.named_modules():
            module.training = name in training
    return bytes(traced.SerializeToString())


def write_embedding(
    directory: Path, tag: str, vectors: Tensor, labels: Sequence[Any] = (), step: int = 0
) -> None:
    """Write points for the projector: `embeddings/*.tsv`, listed in `projector_config.pbtxt`.

    Args:
        directory: The directory of the run.
        tag: The name of the points.
        vectors: The points, a row for each.
        labels: The labels of the points.
        step: The step, which is part of the name.

    Raises:
        ValueError: There is not one label for each point.
        OSError: The files cannot be written.
    """
    rows = _host(vectors).reshape(len(vectors), -1).tolist()
    if labels and len(labels) != len(rows):
        raise ValueError(f"the embedding {tag!r} has {len(rows)} points and {len(labels)} labels")
    name = f"{re.sub(r'[^A-Za-z0-9._-]', '_', tag)}-{step}"
    folder = directory / "embeddings"
    folder.mkdir(exist_ok=True)
    lines = ["\t".join(f"{value:.6g}" for value in row) for row in rows]
    write_text(folder / f"{name}.tsv", "\n".join(lines) + "\n")
    entry = f'embeddings {{\n  tensor_name: "{name}"\n  tensor_path: "embeddings/{name}.tsv"\n'
    if labels:
        shown = [re.sub(r"\s+", " ", str(label)) for label in labels]
        write_text(folder / f"{name}-labels.tsv", "\n".join(shown) + "\n")
        entry += f'  metadata_path: "embeddings/{name}-labels.tsv"\n'
    listing = directory / "projector_config.pbtxt"
    known = listing.read_text(encoding="utf-8") if listing.exists() else ""
    if f'tensor_name: "{name}"' not in known:
        write_text(listing, f"{known}{entry}}}\n")


def _host(values: Any) -> torch.Tensor:
    import torch

    tensor = torch.as_tensor(values).detach().cpu()
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
