"""Accelerate: gradients of two micro-batches, modulated before `accelerator.clip_grad_norm_`."""

import torch
from accelerate import Accelerator
from audio_visual import AudioVisual, samples
from torch import nn
from torch.utils.data import DataLoader

from modbalance import BalancedOptimizer
from modbalance.accelerate import modulate_before_clip

accelerator = Accelerator(gradient_accumulation_steps=2)
net = AudioVisual().to(accelerator.device)
balanced = BalancedOptimizer(
    torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    method="agm",
    model=net,
    modalities={"audio": "audio_net", "visual": "visual_net"},
    fusion="fusion",
)
criterion = balanced.criterion(nn.CrossEntropyLoss())
loader = DataLoader(samples(96), batch_size=16, shuffle=True)
model, opt, loader = accelerator.prepare(net, balanced, loader)
modulate_before_clip(accelerator, opt)

for _ in range(2):
    model.train()
    for audio, visual, label in loader:
        with accelerator.accumulate(model):
            accelerator.backward(criterion(model(audio, visual), label))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            opt.zero_grad()
    balanced.end_epoch()

print(balanced.epoch, balanced.metrics())
