"""A training script that somebody has before modbalance: its beginning, with model and data."""

BEGINNING = '''
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Mean(nn.Module):
    def forward(self, x):
        return x.flatten(2).mean(2)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, audio, visual):
        return self.linear(torch.cat([audio, visual], 1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.audio_net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), Mean())
        self.visual_net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Mean())
        self.fusion_module = Head()

    def forward(self, audio, visual):
        return self.fusion_module(self.audio_net(audio), self.visual_net(visual))


def synthetic(count, seed):
    """The class is the loudness of the sound, in noise, and the colour of the picture."""
    draw = torch.Generator().manual_seed(seed)
    target = torch.randint(4, (count,), generator=draw)
    audio = (1 + target.float().view(-1, 1, 1, 1)) * 0.4 * torch.randn(count, 1, 8, 8, generator=draw)
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    visual = 4 * colours[target].view(-1, 3, 1, 1) + torch.randn(count, 3, 8, 8, generator=draw)
    return TensorDataset(audio, visual, target)


torch.manual_seed(0)
model = Net()
epochs = 10
loader = DataLoader(synthetic(512, 1), batch_size=16, shuffle=True)
val_loader = DataLoader(synthetic(512, 2), batch_size=64)
'''
"""Defines `model`, `loader`, `val_loader` and `epochs`."""
