#!/usr/bin/env bash
# What does an optimizer make of gradients that are all multiplied by 0.01? SGD takes 0.01 of the step, Adam the same step.
# KATE and DAdaptAdan of pytorch_optimizer take a step 100 times as large. RAdam of torch takes 0.01 of the step five
# times, then the same step: its first steps are those of SGD with momentum.
#
# Usage: findings/smaller_gradients_larger_steps.sh            torch 2.11.0, pytorch_optimizer 4.1.0
#        PYTHON=python3 findings/smaller_gradients_larger_steps.sh    without installing
set -euo pipefail

check() {
    "$1" - <<'PY'
from importlib.metadata import version

import torch
from pytorch_optimizer import Kate
from pytorch_optimizer.optimizer.dadapt import DAdaptAdan
from torch import nn


def steps(kind, scale, **settings):
    """Return the norm of each of ten updates of a matrix of 16 weights."""
    torch.manual_seed(0)
    weights = nn.Parameter(0.1 * torch.randn(4, 4))
    gradients = torch.randn(10, 4, 4)
    optimizer = kind([weights], **settings)
    norms = []
    for gradient in gradients:
        before = weights.detach().clone()
        weights.grad = scale * gradient
        optimizer.step()
        norms.append((weights.detach() - before).norm().item())
    return norms


def ratios(kind, **settings):
    return [small / large for small, large in zip(steps(kind, 0.01, **settings), steps(kind, 1.0, **settings))]


print("torch", torch.__version__, "pytorch_optimizer", version("pytorch_optimizer"))
print("size of the update for gradients times 0.01, over that for gradients times 1:")
found = {
    "SGD": ratios(torch.optim.SGD, lr=0.01, momentum=0.9),
    "Adam": ratios(torch.optim.Adam, lr=0.01),
    "RAdam": ratios(torch.optim.RAdam, lr=0.01),
    "Kate": ratios(Kate),
    "DAdaptAdan": ratios(DAdaptAdan),
}
for name, values in found.items():
    print(f"  {name:10}", " ".join(f"{value:7.2f}" for value in values))
near = lambda values, expected: all(abs(value / expected - 1) < 0.05 for value in values)
assert near(found["SGD"], 0.01) and near(found["Adam"], 1)
assert near(found["RAdam"][:5], 0.01) and near(found["RAdam"][5:], 1), "RAdam has changed"
assert near(found["Kate"], 100), "KATE has changed"
assert near(found["DAdaptAdan"], 100), "DAdaptAdan has changed"
PY
}

if [[ -n "${PYTHON:-}" ]]; then
    check "$PYTHON"
    exit
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.11.0" "numpy==2.2.6" "pytorch_optimizer==4.1.0"
check "$folder/venv/bin/python"
