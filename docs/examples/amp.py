"""A plain loop with mixed precision: unscale, modulate, clip, step."""

import torch
from audio_visual import AudioVisual, samples
from torch import nn
from torch.utils.data import DataLoader

from modbalance import BalancedOptimizer

device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.bfloat16
net = AudioVisual().to(device)
opt = BalancedOptimizer(
    torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    method="ogm",
    model=net,
    modalities={"audio": "audio_net", "visual": "visual_net"},
    fusion="fusion",
    param_filter="all",  # the official filter takes convolutions alone
)
criterion = opt.criterion(nn.CrossEntropyLoss())
scaler = torch.amp.GradScaler(device)

for _ in range(2):
    net.train()
    for audio, visual, label in DataLoader(samples(96), batch_size=16, shuffle=True):
        with torch.autocast(device, dtype):
            loss = criterion(net(audio.to(device), visual.to(device)), label.to(device))
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        opt.modulate()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    opt.end_epoch()

print(opt.epoch, opt.metrics())
