"""A stage of one linear layer, to look at the loop itself."""

import torch
from torch import nn

from latentgen.weights.safetensors_io import write_tensors

TRUTH = torch.tensor([[1.0, -2.0, 3.0]])


class ToyStage:
    """Regression: batch number k of all processes together depends on k alone."""

    def __init__(self, accelerator=None, size=8, spoil=None):
        self.module = nn.Linear(3, 1)
        self.settings = {}
        self.size = size
        self.spoil = spoil or (lambda step, loss: loss)
        self.fetched = []
        self.drawn = []

    def prepare(self):
        pass

    def batch(self, index, process, processes):
        self.fetched.append(index)
        x = torch.randn(self.size, 3, generator=torch.Generator().manual_seed(index * processes + process))
        return {"x": x, "y": x @ TRUTH.T, "index": torch.tensor(index)}

    def loss(self, module, batch):
        loss = (module(batch["x"]) - batch["y"]).square().mean()
        return {"near": self.spoil(int(batch["index"]), 0.25 * loss), "far": 0.75 * loss}

    def draw(self, path):
        assert not self.module.training
        assert not torch.is_grad_enabled()
        self.drawn.append(path.name)

    def export(self, folder):
        write_tensors(folder / "model.safetensors", self.module.state_dict())
