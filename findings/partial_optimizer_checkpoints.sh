#!/usr/bin/env bash
# Torch's distributed checkpoint of a model with a parameter that never got a gradient, saved and loaded again by torch's own
# helpers: `get_state_dict` of a fresh optimizer makes state for every parameter, the saved one holds it for those with
# gradients alone, and the load fails. The error is a CheckpointException, which is no Exception: `except Exception`, as
# around the load of a possibly damaged checkpoint, does not catch it.
#
# Usage: findings/partial_optimizer_checkpoints.sh [TORCH_VERSION ...]     default: 2.11.0 2.14.1
#        PYTHON=python3 findings/partial_optimizer_checkpoints.sh          without installing
set -euo pipefail

check() {
    "$1" -W ignore - <<'PY'
import contextlib
import io
import tempfile

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict


def trained(steps):
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        model["used"](torch.randn(2, 4)).sum().backward()
        optimizer.step()
    return model, optimizer


def state(steps):
    model, optimizer = get_state_dict(*trained(steps))
    return {"model": model, "optimizer": optimizer}


print("torch", torch.__version__)
with tempfile.TemporaryDirectory() as folder:
    with contextlib.redirect_stderr(io.StringIO()):
        dcp.save(state(steps=3), checkpoint_id=folder)
        try:
            dcp.load(state(steps=0), checkpoint_id=folder)
        except Exception as error:
            caught = error
        except BaseException as error:
            caught = error
        else:
            caught = None
missing = "optimizer.state.unused.weight.momentum_buffer"
print("load:", type(caught).__name__, "| is an Exception:", isinstance(caught, Exception), "| names", missing in str(caught))
assert type(caught).__name__ == "CheckpointException" and not isinstance(caught, Exception), "the behaviour has changed"
assert f"Missing key in checkpoint state_dict: {missing}" in str(caught), "the behaviour has changed"
PY
}

if [[ -n "${PYTHON:-}" ]]; then
    check "$PYTHON"
    exit
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
[[ $# -gt 0 ]] || set -- 2.11.0 2.14.1
for version in "$@"; do
    python3 -m venv --clear "$folder/venv"
    "$folder/venv/bin/pip" install --quiet "torch==$version" "numpy==2.2.6"
    check "$folder/venv/bin/python"
done
