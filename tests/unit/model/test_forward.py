"""Which arguments of a forward belong to which modality."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbalance import ConfigError, ObservationError
from support.batch_spy import coalition, look_once, spy_on
from support.models import Multimodal
from support.training import batches, multimodal


class Talking(Multimodal):
    """A modality with two arguments, one of them boolean, and keyword arguments."""

    def forward(self, flag: str, mask: Tensor, sound: Tensor, text: Tensor) -> Tensor:  # type: ignore[override]
        assert flag == "flag"
        return self.fusion(self.encoders["a"](sound), self.encoders["b"](text) * mask.unsqueeze(1))


@pytest.mark.parametrize("mask_value", [0.0, 2.0, {"b": 3.0}])
@pytest.mark.parametrize("stay", ["a", "b"])
def test_inputs_by_position_and_name(mask_value: Any, stay: str) -> None:
    torch.manual_seed(0)
    model = Talking()
    (sound, text), target = batches(model, 1)[0]
    mask = torch.tensor([1, 0, 1, 1, 0, 1])
    places = {"a": "sound", "b": ("mask", "text")}
    keywords = {"mask": mask, "sound": sound, "text": text}
    found = look_once(
        model, coalition(stay), ("flag",), target, keywords=keywords, inputs=places, mask_value=mask_value
    )
    value = mask_value if isinstance(mask_value, float) else mask_value.get("b" if stay == "a" else "a", 0.0)
    if stay == "a":
        expected = model("flag", torch.full_like(mask, value), sound, torch.full_like(text, value))
    else:
        expected = model("flag", mask, torch.full_like(sound, value), text)
    torch.testing.assert_close(found, expected)


def test_inputs_by_position_behind_other_arguments() -> None:
    torch.manual_seed(0)
    model = Talking()
    (sound, text), target = batches(model, 1)[0]
    mask = torch.ones(6)
    places = {"a": 2, "b": (1, 3)}
    found = look_once(model, coalition("b"), ("flag", mask, sound, text), target, inputs=places)
    torch.testing.assert_close(found, model("flag", mask, 0 * sound, text))


def test_keyword_inputs_named_as_the_modalities_need_no_places() -> None:
    class Named(Multimodal):
        def forward(self, *, b: Tensor, a: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(a, b)

    torch.manual_seed(0)
    model = Named()
    (a, b), target = batches(model, 1)[0]
    found = look_once(model, coalition("b"), (), target, keywords={"a": a, "b": b})
    torch.testing.assert_close(found, model(a=0 * a, b=b))


def test_an_optional_input_may_be_none() -> None:
    class Optional(Multimodal):
        def forward(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
            assert mask is None
            return super().forward(a, b)

    torch.manual_seed(0)
    model = Optional()
    (a, b), target = batches(model, 1)[0]
    places: dict[str, Any] = {"a": 0, "b": (1, "mask")}
    found = look_once(model, coalition("a"), (a, b), target, keywords={"mask": None}, inputs=places)
    torch.testing.assert_close(found, model(a, 0 * b))


def test_places_that_do_not_exist_are_named() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ConfigError, match="'sound'"):
        look_once(model, coalition("a"), inputs, target, inputs={"a": 0, "b": "sound"})


def test_removing_inputs_of_an_unseen_forward_says_what_is_missing() -> None:
    model = multimodal()
    optimizer, _ = spy_on(model, coalition("a"))
    inputs, target = batches(model, 1)[0]
    features = [encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True)]
    with pytest.raises(ObservationError, match="model="):
        optimizer.criterion(nn.CrossEntropyLoss())(model.fusion(*features), target)
