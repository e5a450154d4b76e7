"""The Trainer of Transformers: its clip, `max_grad_norm=1.0` by default, acts on modulated gradients."""

import torch
from audio_visual import AudioVisual, samples
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from modbalance import BalancedOptimizer
from modbalance.transformers import BalanceCallback


def collate(batch: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Return a batch as the Trainer wants it, with the target as `labels`."""
    return dict(zip(("audio", "visual", "labels"), map(torch.stack, zip(*batch, strict=True)), strict=True))


net = AudioVisual()
opt = BalancedOptimizer(
    torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    method="dgl",
    model=net,
    modalities={"audio": "audio_net", "visual": "visual_net"},
    fusion="fusion",
)
criterion = opt.criterion(nn.CrossEntropyLoss())
trainer = Trainer(
    model=net,
    args=TrainingArguments(
        output_dir="runs/trainer", num_train_epochs=2, save_strategy="no", report_to="none", label_names=["labels"]
    ),
    train_dataset=samples(96),
    data_collator=collate,
    optimizers=(opt, None),
    compute_loss_func=lambda logits, labels, num_items_in_batch=None: criterion(logits, labels),
)
trainer.add_callback(BalanceCallback(trainer))
trainer.train()
print(opt.epoch, opt.metrics())
