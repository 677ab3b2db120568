"""REINFORCE: a policy learns to walk to the end of a corridor; there is no data, only steps.

Without a dataset for `train`, each step gets None as its batch, and `max_steps` ends the training.

Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning,
1992.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import danling as dl


class Corridor(dl.Config):
    experiment_name = "reinforce"
    seed = 0
    max_steps = 200
    lr: float = 1e-2
    walkers: int = 64  # episodes of a step
    length: int = 8
    moves: int = 16  # moves of an episode


def make_policy() -> nn.Module:
    return nn.Sequential(nn.Linear(config.length, 32), nn.Tanh(), nn.Linear(32, 2))


def walk(policy: nn.Module, device: torch.device) -> dict[str, Tensor]:
    place = torch.zeros(config.walkers, dtype=torch.int64, device=device)
    log_probability = torch.zeros(config.walkers, device=device)
    reward = torch.zeros(config.walkers, device=device)
    for _ in range(config.moves):
        logits = policy(one_hot(place, config.length).float())
        move = logits.softmax(dim=1).multinomial(1).squeeze(1)
        log_probability = log_probability - cross_entropy(logits, move, reduction="none")
        place = (place + 2 * move - 1).clamp(0, config.length - 1)
        reward = reward + (place == config.length - 1)
    advantage = reward - reward.mean()
    return {"loss": -(log_probability * advantage).mean(), "reward": reward.mean()}


class Walkers(dl.AccelerateRunner):
    def train_step(self, batch: None) -> dict[str, Tensor]:
        return walk(self.model, self.device)


config = Corridor.parse()
dl.seed_everything(config)
policy = make_policy()
runner = Walkers(
    config, model=policy, optimizer=torch.optim.Adam(policy.parameters(), lr=config.lr)
)
runner.train()
