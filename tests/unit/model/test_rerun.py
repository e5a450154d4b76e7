"""Running the fusion again, in the forms in which it can be named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbalance import Batch, ConfigError
from support.batch_spy import coalition, look_once, spy_on
from support.models import Multimodal, Recording
from support.training import batches, multimodal


class TwoParts(Multimodal):
    """The head is two modules, run one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion = Recording(8, 6)
        self.out_layer = nn.Linear(6, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.out_layer(super().forward(*inputs).relu())


def test_a_list_of_modules_is_run_in_sequence() -> None:
    torch.manual_seed(0)
    model = TwoParts()
    model.fusion.eval()
    relu = nn.ReLU()
    inputs, target = batches(model, 1)[0]
    found = look_once(model, coalition("a", remove="features"), inputs, target, fusion=["fusion", relu, "out_layer"])
    z = [encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True)]
    torch.testing.assert_close(found, model.out_layer(model.fusion(z[0], 0 * z[1]).relu()))


def test_a_callable_fusion_takes_the_outputs_of_the_encoders() -> None:
    model = multimodal(head="film")
    inputs, target = batches(model, 1)[0]
    found = look_once(model, coalition("b", remove="features"), inputs, target, fusion=lambda a, b: model.fusion(a, b))
    z = [encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True)]
    torch.testing.assert_close(found, model.fusion(0 * z[0], z[1]))


def test_without_a_fusion_it_is_said_what_to_pass() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ConfigError, match="fusion="):
        look_once(model, coalition("b", remove="features"), inputs, target, fusion=None)


def test_a_fusion_that_returns_no_tensor_is_refused() -> None:
    class Pair(Multimodal):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(*inputs)[0]

    torch.manual_seed(0)
    model = Pair(head="mlp")
    model.fusion.register_forward_hook(lambda *call: (call[2], None))
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ConfigError, match="tuple"):
        look_once(model, coalition("b", remove="features"), inputs, target)


# Passes that leave no trace by themselves


class Drawing(nn.Linear):
    """Adds random numbers in both modes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(3)


@pytest.mark.parametrize(
    ("layers", "is_pure"),
    [
        ([nn.Linear(8, 3)], True),
        ([nn.Dropout(0.0), nn.Linear(8, 3)], True),
        ([nn.Dropout(0.5).eval(), nn.Linear(8, 3)], True),
        ([nn.Dropout(0.5), nn.Linear(8, 3)], False),
        ([nn.BatchNorm1d(8), nn.Linear(8, 3)], False),
        ([Drawing(8, 3)], False),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_random_state_is_forked_where_the_fusion_may_draw(
    layers: list[nn.Module], is_pure: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks: list[object] = []
    fork = torch.random.fork_rng

    def counted(*args: Any) -> Any:
        forks.append(args)
        return fork(*args)

    model = multimodal()
    model.fusion.fc_out = nn.Sequential(*layers)
    inputs, target = batches(model, 1)[0]

    def look(batch: Batch) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(torch.random, "fork_rng", counted)
            return batch.coalition_logits("a", remove="features", training=training)

    before = torch.get_rng_state()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    optimizer, seen = spy_on(model, look)
    logits = model(*inputs)
    state = torch.get_rng_state()
    after_forward = {name: value.clone() for name, value in model.named_buffers()}
    optimizer.criterion(nn.CrossEntropyLoss())(logits, target)

    assert seen[0].shape == (6, 3)
    assert bool(forks) is (training or not is_pure)
    assert torch.get_rng_state().equal(state)
    assert before.equal(state) is (is_pure or isinstance(layers[0], nn.BatchNorm1d))
    assert buffers.keys() == after_forward.keys()
    assert all(value.equal(after_forward[name]) for name, value in model.named_buffers())


def test_a_fusion_in_eval_mode_runs_in_training_mode_where_that_is_asked_for() -> None:
    model = multimodal()
    model.fusion.fc_out = nn.Sequential(nn.Dropout(1.0).eval(), nn.Linear(8, 3))
    inputs, target = batches(model, 1)[0]
    logits = look_once(model, coalition("a", remove="features", training=True), inputs, target)
    assert logits.equal(logits[:1].expand(6, 3))
    assert not model.fusion.fc_out[0].training
