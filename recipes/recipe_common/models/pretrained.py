"""Pretrained networks and tokenizers of the transformers library, read from local files only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from recipe_common.errors import RecipeError, require

WEIGHTS = ("*.safetensors", "*.bin")
IDENTIFYING = (*WEIGHTS, "config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json")
"""Files that determine the output of a network or tokenizer."""
POOLER = "pooler."
"""Prefix of the parameters that have no influence on hidden states."""


def local_folder(model: str, flag: str, published: str) -> Path:
    """Return the folder of a network: `model` itself, or the folder of that name in the Hugging Face cache.

    Args:
        model: A folder as `save_pretrained` writes it, or a name such as `google-bert/bert-base-uncased`.
        flag: The flag with this value, for the message.
        published: Public name of a suitable network, for the message.

    Raises:
        RecipeError: If it does not exist, or has no configuration or no weights; the message has the command to
            download it.
    """
    folder = Path(model)
    if not folder.is_dir():
        hub = require("huggingface_hub")
        try:
            folder = Path(hub.snapshot_download(model, local_files_only=True))
        except (OSError, ValueError) as error:  # not in the cache; not a possible name
            found = f"neither that folder nor {model} in the Hugging Face cache"
            raise _absent(found, model, flag, published) from error
    missing = ["config.json"] * (not (folder / "config.json").is_file()) + ["weights"] * (not _weights(folder))
    if missing:
        raise _absent(f"{folder} without {' and '.join(missing)}", model, flag, published)
    return folder


def identity(folder: Path) -> str:
    """Return a SHA-256 in hex of all files that determine the output of the network or tokenizer in a folder."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in IDENTIFYING for path in folder.glob(pattern)}):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def read_config(folder: Path) -> Any:
    """Return the configuration of the network in a folder.

    Raises:
        RecipeError: If it cannot be read.
    """
    transformers = require("transformers")
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(folder, error) from error


def load_network(folder: Path, *, pooler: bool = False) -> nn.Module:
    """Return the network in a folder without its heads, in float32 and in evaluation mode.

    Args:
        folder: Folder from `local_folder`.
        pooler: Whether the checkpoint must have the weights of the pooler, too.

    Raises:
        RecipeError: If it cannot be read, or if the checkpoint lacks weights, which would be random.
    """
    transformers = require("transformers")
    _disable_output()
    try:
        network, report = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype="float32"
        )
    except Exception as error:  # the readers of two file formats raise errors of their own
        raise _damaged(folder, error) from error
    missing = sorted(name for name in report["missing_keys"] if pooler or not name.startswith(POOLER))
    if missing:
        raise _damaged(folder, f"{len(missing)} weights are missing, such as {missing[0]}")
    module: nn.Module = network.eval()
    return module


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder.

    Raises:
        RecipeError: If it cannot be read.
    """
    transformers = require("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the readers of many file formats raise errors of their own
        raise _damaged(folder, error) from error


def _weights(folder: Path) -> list[Path]:
    return [path for pattern in WEIGHTS for path in folder.glob(pattern)]


def _disable_output() -> None:
    """Disable the progress bar and the report of the transformers library for each network."""
    logging = require("transformers.utils.logging")
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _absent(found: str, model: str, flag: str, published: str) -> RecipeError:
    return RecipeError(
        f"`{flag} {model}` should be a network in local files, since recipes download nothing",
        found=found,
        fix=f"download one where there is a connection, `hf download {published} --local-dir DIR`, and write "
        f"`{flag} DIR`",
    )


def _damaged(folder: Path, error: object) -> RecipeError:
    return RecipeError(
        f"{folder} should hold a whole network of the transformers library",
        found=f"the error `{str(error).rstrip('.')}`",
        fix="download it again",
    )
