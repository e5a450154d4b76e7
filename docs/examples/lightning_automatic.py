"""Lightning, automatic optimization: `gradient_clip_val` acts on modulated gradients."""

import torch
from audio_visual import AudioVisual, samples
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from modbalance import BalancedOptimizer
from modbalance.lightning import BalanceCallback


class Module(LightningModule):
    """Trains the model with OGM-GE."""

    def __init__(self) -> None:
        super().__init__()
        self.net = AudioVisual()

    def configure_optimizers(self) -> BalancedOptimizer:
        """Return the optimizer, and keep its criterion."""
        inner = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)
        parts = {"audio": "audio_net", "visual": "visual_net"}
        options = {"param_filter": "all", "end_epoch": 10}  # the official filter takes convolutions alone
        opt = BalancedOptimizer(inner, "ogm_ge", model=self.net, modalities=parts, fusion="fusion", **options)
        self.criterion = opt.criterion(nn.CrossEntropyLoss())
        return opt

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        audio, visual, label = batch
        return self.criterion(self.net(audio, visual), label)


quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
trainer = Trainer(max_epochs=2, gradient_clip_val=1.0, callbacks=[BalanceCallback()], accelerator="cpu", **quiet)
trainer.fit(Module(), DataLoader(samples(96), batch_size=16, shuffle=True))
print(trainer.optimizers[0].epoch, trainer.optimizers[0].metrics())
