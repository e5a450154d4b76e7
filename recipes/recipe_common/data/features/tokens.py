"""Text features from token ids in packed files: hidden states of a frozen text encoder, such as BERT."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from torch import Tensor

from recipe_common.data.features.networks import FrozenNetwork
from recipe_common.errors import RecipeError
from recipe_common.models.pretrained import read_config


@attrs.frozen(slots=False)
class TokenStates:
    """Last hidden states of a frozen encoder, 0 at padding.

    The states have passed half precision, as those of all frozen networks here.

    Args:
        folder: Folder of the encoder, from `local_folder`.
        device: Device on which it runs, such as `cuda`.
        batch_size: Texts per forward pass.
    """

    folder: Path
    device: str = "cpu"
    batch_size: int = 64

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return states, float32 (n, L, D), for token ids, mask and types, int64 (n, 3, L).

        Raises:
            RecipeError: If the encoder has fewer words or positions than the tokens need, or see
                `FrozenNetwork.hidden_states`.
        """
        self._check(tokens)
        network = FrozenNetwork(self.folder, device=self.device)
        states = []
        for batch in torch.split(tokens, self.batch_size):
            ids, mask, types = batch.unbind(dim=1)
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            hidden = torch.from_numpy(network.hidden_states(inputs))
            states.append(hidden * mask[..., None])
        return torch.cat(states).float()

    def _check(self, tokens: Tensor) -> None:
        config = read_config(self.folder)
        vocabulary, positions = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
        if vocabulary is None or positions is None:
            raise RecipeError(
                f"{self.folder} should hold a network for texts, such as BERT",
                found="no vocabulary or no positions in its configuration",
                fix="give another `--text-model`",
            )
        highest = int(tokens[:, 0].max()) if tokens.numel() else 0
        if highest >= vocabulary or tokens.shape[2] > positions:
            raise RecipeError(
                f"The network in {self.folder} should have the vocabulary of the file, {highest + 1:,} words or more, "
                f"and {tokens.shape[2]} positions",
                found=f"{vocabulary:,} words and {positions} positions",
                fix="give the `--text-model` whose token ids are in the file; for MMSA bert-base-uncased, for CH-SIMS "
                "bert-base-chinese",
            )
