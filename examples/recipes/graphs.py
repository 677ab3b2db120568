"""Graphs of different sizes: the lit pixels of a digit, with edges between neighbours.

A batch is one large graph, in an object of its own. The runner moves it with its method `to`, and
asks its `num_graphs` for the number of samples, as PyTorch Geometric has them.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import danling as dl


class GraphTraining(dl.Config):
    experiment_name = "graphs"
    seed = 0
    max_epochs = 3
    dataloader = {"batch_size": 16}


@dataclass
class Graphs:
    nodes: Tensor  # [nodes, 3]: brightness and place of each lit pixel
    edges: Tensor  # [2, edges]: numbers of the nodes that are neighbours
    graph: Tensor  # [nodes]: the number of the graph that each node is of
    labels: Tensor  # [graphs]

    @property
    def num_graphs(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        return type(self)(*(part.to(device) for part in vars(self).values()))


def make_data() -> list[Graphs]:
    pixels, digits = load_digits(return_X_y=True)
    graphs = []
    for image, digit in zip(torch.tensor(pixels[:400]).float() / 16, digits[:400], strict=True):
        places = (image.view(8, 8) > 0.25).nonzero()
        nodes = torch.cat([image[places[:, 0] * 8 + places[:, 1], None], places / 8], dim=1)
        edges = ((torch.cdist(places.float(), places.float()) - 1).abs() < 0.5).nonzero().T
        graphs.append(Graphs(nodes, edges, torch.zeros(len(nodes)).long(), torch.tensor([digit])))
    return graphs


def join(graphs: list[Graphs]) -> Graphs:
    sizes = torch.tensor([len(graph.nodes) for graph in graphs])
    first = (sizes.cumsum(0) - sizes).tolist()
    edges = torch.cat([graph.edges + start for graph, start in zip(graphs, first, strict=True)], 1)
    nodes, labels = (torch.cat([getattr(g, name) for g in graphs]) for name in ("nodes", "labels"))
    return Graphs(nodes, edges, torch.arange(len(graphs)).repeat_interleave(sizes), labels)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 32), nn.Linear(64, 32)])
        self.head = nn.Linear(32, 10)

    def forward(self, batch: Graphs) -> Tensor:
        nodes, (source, target) = batch.nodes, batch.edges
        for layer in self.layers:
            around = torch.zeros_like(nodes).index_add(0, target, nodes[source])
            nodes = layer(torch.cat([nodes, around], dim=1)).relu()
        sums = nodes.new_zeros(batch.num_graphs, 32).index_add(0, batch.graph, nodes)
        return cross_entropy(self.head(sums), batch.labels)


class OnGraphs(dl.AccelerateRunner):
    def train_step(self, batch: Graphs) -> Any:
        return self.model(batch)


config = GraphTraining.parse()
dl.seed_everything(config)
model = Network()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
data = {"train": make_data()}
runner = OnGraphs(config, model=model, optimizer=optimizer, datasets=data, collate_fn=join)
runner.train()
