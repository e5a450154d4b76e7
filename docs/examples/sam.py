"""Sharpness-aware minimization: both passes are modulated, and the second one counts as the step."""

import torch
from audio_visual import AudioVisual, samples
from torch import nn
from torch.utils.data import DataLoader

from modbalance import BalancedOptimizer


class SAM(torch.optim.SGD):
    """SGD on the gradient at the worst point near the weights; any SAM with these two methods will do."""

    def first_step(self, radius: float = 0.05) -> None:
        """Climb by `radius` along the gradient."""
        self.pairs = [(p, p.detach().clone()) for p in self.param_groups[0]["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(p.grad for p, _ in self.pairs)
        torch._foreach_add_([p.data for p, _ in self.pairs], [p.grad * radius / norm for p, _ in self.pairs])

    def second_step(self) -> None:
        """Go back, and step along the gradient that was found there."""
        torch._foreach_copy_([p.data for p, _ in self.pairs], [before for _, before in self.pairs])
        self.step()


net = AudioVisual()
parts = {"audio": "audio_net", "visual": "visual_net"}
inner = SAM(net.parameters(), lr=0.05, momentum=0.9)
opt = BalancedOptimizer(inner, "ogm", model=net, modalities=parts, fusion="fusion", param_filter="all")
criterion = opt.criterion(nn.CrossEntropyLoss())
for _ in range(2):
    for audio, visual, label in DataLoader(samples(96), batch_size=16, shuffle=True):
        for step in (opt.first_step, opt.second_step):
            criterion(net(audio, visual), label).backward()
            step()
            opt.zero_grad()
    opt.end_epoch()
print(opt.epoch, opt.metrics())
