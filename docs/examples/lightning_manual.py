"""Lightning, manual optimization: modulate before `self.clip_gradients`."""

import torch
from audio_visual import AudioVisual, samples
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from modbalance import BalancedOptimizer
from modbalance.lightning import BalanceCallback


class Module(LightningModule):
    """Trains the model with OGM."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.automatic_optimization = AudioVisual(), False

    def configure_optimizers(self) -> BalancedOptimizer:
        """Return the optimizer, and keep its criterion."""
        inner, parts = torch.optim.SGD(self.net.parameters(), lr=0.05), {"audio": "audio_net", "visual": "visual_net"}
        opt = BalancedOptimizer(inner, "ogm", model=self.net, modalities=parts, fusion="fusion", param_filter="all")
        self.criterion = opt.criterion(nn.CrossEntropyLoss())
        return opt

    def training_step(self, batch: list[Tensor], index: int) -> None:
        """Take a step."""
        (audio, visual, label), opt = batch, self.optimizers()
        opt.zero_grad()
        self.manual_backward(self.criterion(self.net(audio, visual), label))
        opt.modulate()
        self.clip_gradients(opt, gradient_clip_val=1.0)
        opt.step()


quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
trainer = Trainer(max_epochs=2, callbacks=[BalanceCallback()], accelerator="cpu", **quiet)
trainer.fit(Module(), DataLoader(samples(96), batch_size=16, shuffle=True))
print(trainer.optimizers[0].epoch, trainer.optimizers[0].metrics())
