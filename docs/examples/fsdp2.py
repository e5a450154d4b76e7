"""FSDP2: shard the model first, then wrap its optimizer. `torchrun --nproc-per-node 2 fsdp2.py`, on CPUs too."""

import torch
import torch.distributed as dist
from audio_visual import AudioVisual, samples
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from modbalance import BalancedOptimizer

dist.init_process_group()
device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cuda":
    torch.cuda.set_device(dist.get_node_local_rank())

mesh = init_device_mesh(device, (dist.get_world_size(),))
net = AudioVisual().to(device)
for encoder in (net.audio_net, net.visual_net):
    fully_shard(encoder, mesh=mesh)
fully_shard(net, mesh=mesh)
parts = {"audio": "audio_net", "visual": "visual_net"}
inner = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
opt = BalancedOptimizer(inner, "ogm_ge", model=net, modalities=parts, fusion="fusion", param_filter="all")
criterion = opt.criterion(nn.CrossEntropyLoss())

data = samples(96)
sampler = DistributedSampler(data, drop_last=True)
for epoch in range(2):
    sampler.set_epoch(epoch)
    for audio, visual, label in DataLoader(data, batch_size=8, sampler=sampler):
        loss = criterion(net(audio.to(device), visual.to(device)), label.to(device))
        loss.backward()
        opt.step()
        opt.zero_grad()
    opt.end_epoch()
if dist.get_rank() == 0:
    print(opt.epoch, opt.metrics())
dist.destroy_process_group()
