"""Methods follow the parameters that the model and the optimizer's groups have now, or say that there are none."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torch.optim import Optimizer

from modbalance import ConfigError, ModbalanceWarning
from support.methods import acting
from support.models import Multimodal
from support.training import assert_same, balanced, batches, multimodal, sgd, train


def replace_parameters(model: nn.Module) -> dict[Tensor, nn.Parameter]:
    """Put an equal new parameter in the place of each, as sharding does; return the new ones by the old."""
    new: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            new[parameter] = nn.Parameter(parameter.detach().clone())
            setattr(module, name, new[parameter])
    return new


def exchange(optimizer: Optimizer, new: dict[Tensor, nn.Parameter]) -> None:
    """Put them into the groups of the optimizer too, as Accelerate's `prepare` does."""
    for group in optimizer.param_groups:
        group["params"] = [new[parameter] for parameter in group["params"]]


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("method", ["ogm", "ogm_ge", "cggm", "mslr", "agm", "dgl", "mses"])
def test_parameters_that_are_exchanged_in_model_and_groups_are_modulated(method: str, after: int) -> None:
    def run(model: Multimodal, *, replaced: bool) -> Multimodal:
        optimizer = balanced(model, method, sgd(model, 0.1), **acting(method))
        criterion = optimizer.criterion(nn.CrossEntropyLoss())
        data = batches(model, 4)
        train(model, optimizer, data[:after], criterion)
        momentum = [optimizer.state[parameter] for parameter in model.parameters()] if after else []
        if replaced:
            exchange(optimizer, replace_parameters(model))
            for parameter, entry in zip(model.parameters(), momentum, strict=bool(after)):
                optimizer.state[parameter] = entry
        train(model, optimizer, data[after:], criterion)
        return model

    assert_same(run(multimodal(), replaced=True), run(multimodal(), replaced=False))


def test_new_groups_of_the_model_free_form_are_modulated() -> None:
    model = multimodal()
    optimizer = balanced(model)
    replaced = replace_parameters(model)
    with pytest.raises(ConfigError, match="Found none among the"):
        train(model, optimizer, batches(model, 1))
    exchange(optimizer, replaced)
    train(model, optimizer, batches(model, 1))


@pytest.mark.parametrize("method", ["ogm", "mslr", "cggm"])
def test_a_method_that_finds_nothing_to_scale_says_so_once(method: str) -> None:
    model = multimodal()
    optimizer = balanced(model, method, sgd(model.fusion), **acting(method))
    with pytest.warns(ModbalanceWarning, match="updates none of their parameters") as given:
        train(model, optimizer, batches(model, 2))
    assert sum("updates none" in str(each.message) for each in given) == 1
