"""Stacks of Lightning, Accelerate and the Trainer, with and without their clips.

Each function returns the weights after the training; ``clip`` is the largest norm of gradients.
"""

from __future__ import annotations

import tempfile
from typing import Any

import lightning.pytorch as lightning
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments

from modbalance import BalancedOptimizer
from modbalance import lightning as lightning_adapter
from modbalance import transformers as trainer_adapter
from modbalance.accelerate import modulate_before_clip
from stacks.training import EPOCHS, LOSS, Weights, options_of
from support.stacks import SIZE, STEPS, accelerate_as_new, dataset, loader, metrics_of, wrapped
from support.training import multimodal_for, weights


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, method: str) -> None:
        super().__init__()
        self.net, self.method = multimodal_for(method), method

    def configure_optimizers(self) -> BalancedOptimizer:
        optimizer = wrapped(self.net, self.method, **options_of(self.method))
        self.criterion = optimizer.criterion(LOSS)
        return optimizer

    def training_step(self, batch: list[Tensor], index: int) -> Any:
        *inputs, target = batch
        return self.criterion(self.net(*inputs), target)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        *inputs, _ = batch
        self.net(*inputs)


def lightning_trainer(method: str, clip: float | None = None) -> Weights:
    module = Module(method)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        gradient_clip_val=clip,
        callbacks=[lightning_adapter.BalanceCallback(metrics=metrics_of)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, loader(), loader(2, seed=3))
    return weights(module.net)


def accelerate(method: str, clip: float | None = None) -> Weights:
    with accelerate_as_new():
        accelerator = Accelerator(cpu=True)
        bare = multimodal_for(method)
        balanced = wrapped(bare, method, **options_of(method))
        criterion = balanced.criterion(LOSS)
        model, optimizer, train = accelerator.prepare(bare, balanced, loader())
        modulate_before_clip(accelerator, optimizer)
        val = loader(2, seed=3)
        balanced.begin(train=train, val=val)
        for epoch in range(EPOCHS):
            model.train()
            for *inputs, target in train:
                accelerator.backward(criterion(model(*inputs), target))
                if clip is not None:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
            balanced.end_epoch(train=train, val=val, metrics=metrics_of(epoch))
        return weights(bare)


class Named(Dataset[dict[str, Tensor]]):
    def __init__(self, count: int, seed: int) -> None:
        self.samples = dataset(count, seed)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(zip(("a", "b", "labels"), self.samples[index], strict=True))


class Model(nn.Module):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.net = multimodal_for(method)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(a, b)}


class Unshuffled(Trainer):  # type: ignore[misc]
    def _get_train_sampler(self, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def huggingface_trainer(method: str, clip: float | None = None) -> Weights:
    with accelerate_as_new(), tempfile.TemporaryDirectory() as folder:
        model = Model(method)
        optimizer = wrapped(model.net, method, around=model, **options_of(method))
        criterion = optimizer.criterion(LOSS, logits_of="logits")
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=SIZE,
            lr_scheduler_type="constant",
            max_grad_norm=clip or 0.0,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        trainer = Unshuffled(
            model=model,
            args=settings,
            train_dataset=Named(STEPS, 1),
            eval_dataset=Named(2, 3),
            optimizers=(optimizer, None),
            compute_loss_func=lambda outputs, labels, num_items_in_batch=None: criterion(outputs, labels),
        )
        trainer.add_callback(trainer_adapter.BalanceCallback(trainer, metrics=metrics_of))
        trainer.train()
        return weights(model.net)
