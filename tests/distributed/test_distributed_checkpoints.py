"""torch's distributed checkpoints: with `MethodState`, a resumed training is bitwise the uninterrupted one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from modbalance import BalancedOptimizer, CheckpointError, ModbalanceWarning
from modbalance.distributed_checkpoint import MethodState
from modbalance.testing._case import Training, different
from support.every_method import BUILT_IN, case_of
from support.ranks import on_ranks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")]


def parts_of(training: Training) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = get_state_dict(training.wrapped, training.optimizer)
    return {"model": model, "optimizer": optimizer, "modbalance": MethodState(training.optimizer)}


def save(training: Training, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save as write

    write(parts_of(training), checkpoint_id=folder)


def load(training: Training, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load as read

    parts = parts_of(training)
    read(parts, checkpoint_id=folder)
    set_state_dict(
        training.wrapped, training.optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"]
    )


# Torch's state of an optimizer holds an entry for every parameter when it is loaded, and for those that ever had a
# gradient when it is saved: the bias of a head that MMCosine leaves alone has none.
WITHOUT_A_GRADIENT = "mmcosine"
LOADABLE = [name for name in BUILT_IN if name != WITHOUT_A_GRADIENT]


def test_torch_loads_no_state_of_a_parameter_without_gradient(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.api import CheckpointException  # no Exception, but a BaseException

    case = case_of(WITHOUT_A_GRADIENT)
    save(case.training().run(stop=1), tmp_path)
    with pytest.raises(CheckpointException, match=r"Missing key in checkpoint state_dict: optimizer\.state.*bias"):
        load(case.training(seed=7), tmp_path)


@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize("name", LOADABLE)
def test_a_resumed_training_is_the_uninterrupted_one(name: str, stop: int, tmp_path: Path) -> None:
    case = case_of(name)
    whole = case.training().run()
    data = whole.data()
    save(case.training().run(data, stop=stop), tmp_path)
    after = case.training(seed=7)
    load(after, tmp_path)
    after.run(data, start=stop)

    assert different(after.weights(), whole.weights()) == []
    assert different(after.saved(), whole.saved()) == []


def resumed_ranks(rank: int, folder: Path) -> list[str]:
    """Return, by method, what differs between the uninterrupted training and the resumed one."""
    found = []
    for name in LOADABLE:
        case = case_of(name)
        whole, before, after = (case.training(wrap=DistributedDataParallel, seed=seed) for seed in (0, 0, 7))
        mine = [(tuple(x[rank::2] for x in inputs), target[rank::2]) for inputs, target in whole.data()]
        whole.run(mine)
        save(before.run(mine, stop=3), folder / name)
        load(after, folder / name)
        after.run(mine, start=3)
        found += [f"{name}: {path}" for path in different(after.weights(), whole.weights())]
        found += [f"{name}: {path}" for path in different(after.saved(), whole.saved())]
    return found


def test_two_ranks_resume(tmp_path: Path) -> None:
    assert on_ranks(resumed_ranks, tmp_path) == [[], []]


def test_another_method_is_refused(tmp_path: Path) -> None:
    save(case_of("ogm").training(), tmp_path)
    other = case_of("agm").training()
    before = other.weights()
    with pytest.raises(CheckpointError, match="of the methods"):
        load(other, tmp_path)
    assert different(other.weights(), before) == []


class Sharded(torch.Tensor):
    """A tensor that looks sharded."""

    full_tensor = None


def test_sharded_state_is_refused() -> None:
    training = case_of("mslr").training()
    method = training.optimizer._lifecycle.methods[0]
    method.ratio = {"left": torch.zeros(()).as_subclass(Sharded)}
    with pytest.raises(CheckpointError, match="sharded tensors in 'methods/mslr/ratio/left'"):
        MethodState(training.optimizer).state_dict()


# Without the helpers: `dcp.save({"optimizer": opt.state_dict()})`, or the optimizer itself


def save_plainly(training: Training, folder: Path, *, whole: bool = False) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save as write

    optimizer = training.optimizer if whole else training.optimizer.state_dict()
    write({"model": training.model.state_dict(), "optimizer": optimizer}, checkpoint_id=folder)


def load_plainly(training: Training, folder: Path, *, whole: bool = False) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load as read

    state = {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer if whole else training.optimizer.state_dict(),
    }
    read(state, checkpoint_id=folder)
    training.model.load_state_dict(state["model"])
    if not whole:
        training.optimizer.load_state_dict(state["optimizer"])


def plainly_resumed(name: str, folder: Path, *, whole: bool) -> list[str]:
    """Return what is told when a new optimizer is loaded; the methods are as they were saved, or there is an error."""
    from torch.distributed.checkpoint.api import CheckpointException

    case = case_of(name)
    before = case.training()
    save_plainly(before.run(before.data(), stop=3), folder, whole=whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BalancedOptimizer, "begin", lambda *_, **__: None)  # nothing has begun in the new one
        after = case.training(seed=7)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always", ModbalanceWarning)
        try:
            load_plainly(after, folder, whole=whole)
        except (CheckpointError, CheckpointException) as error:
            return [str(error)]
    assert different(after.saved()["methods"], before.saved()["methods"]) == []
    return [str(warning.message) for warning in given if issubclass(warning.category, ModbalanceWarning)]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_plain_round_trip_into_a_new_optimizer_is_not_silent(name: str, whole: bool, tmp_path: Path) -> None:
    (told,) = plainly_resumed(name, tmp_path, whole=whole)
    assert "MethodState(opt)" in told or "optimizer.modbalance.methods" in told


def test_a_plain_round_trip_names_lost_averages(tmp_path: Path) -> None:
    assert "Found no 'mslr/accuracies/left/0'" in plainly_resumed("mslr", tmp_path, whole=False)[0]


def test_a_plain_round_trip_into_a_trained_optimizer_is_whole(tmp_path: Path) -> None:
    case = case_of("agm")
    whole = case.training().run()
    data = whole.data()
    training = case.training().run(data, stop=3)
    save_plainly(training, tmp_path)
    training.run(data, start=3)
    load_plainly(training, tmp_path)
    training.run(data, start=3)
    assert different(training.weights(), whole.weights()) == []
