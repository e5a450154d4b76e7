#!/usr/bin/env bash
# A tensor counts its changes in place (`_version`), and autograd relies on the count. Which edits of a gradient count?
# A clip counts even where it changes nothing; GradScaler.unscale_ changes every value, and does not count.
#
# Usage: findings/uncounted_unscaling.sh [TORCH_VERSION ...]     default: 2.11.0 2.14.1
#        PYTHON=python3 findings/uncounted_unscaling.sh          without installing
set -euo pipefail

check() {
    "$1" - <<'PY'
import torch
from torch import nn
from torch.amp import GradScaler


def counted(edit):
    """Return by how much an edit of a gradient is counted, and whether it changes the values."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=8.0)
    scaler.scale(layer(torch.ones(4, 3)).square().sum()).backward()
    gradient = layer.weight.grad
    before, version = gradient.clone(), gradient._version
    edit(layer, optimizer, scaler)
    assert layer.weight.grad is gradient
    return gradient._version - version, not torch.equal(gradient, before)


print("torch", torch.__version__)
edits = {
    "clip_grad_norm_, bound not reached": (lambda layer, *_: nn.utils.clip_grad_norm_(layer.parameters(), 1e6), 1, False),
    "clip_grad_norm_, bound reached": (lambda layer, *_: nn.utils.clip_grad_norm_(layer.parameters(), 1e-3), 1, True),
    "GradScaler.unscale_": (lambda _, optimizer, scaler: scaler.unscale_(optimizer), 0, True),
}
for name, (edit, count, changes) in edits.items():
    found = counted(edit)
    print(f"  {name:36} counted: {found[0]}, values changed: {found[1]}")
    assert found == (count, changes), "the behaviour has changed"
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
