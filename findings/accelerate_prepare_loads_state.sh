#!/usr/bin/env bash
# Accelerate's `prepare`, without any checkpoint, on the CPU: it has the optimizer load its own state, so `load_state_dict`
# and its hooks run although nothing is resumed, and the dicts in `param_groups` are new ones. A learning rate that is set
# through a group kept from before `prepare` raises no error and is never used.
#
# Usage: findings/accelerate_prepare_loads_state.sh [ACCELERATE_VERSION ...]     default: 1.10.0 1.15.0
#        PYTHON=python3 findings/accelerate_prepare_loads_state.sh               without installing
set -euo pipefail

check() {
    "$1" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from accelerate import Accelerator
from torch import nn

model = nn.Linear(2, 1, bias=False)
nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
loads = []
optimizer.register_load_state_dict_post_hook(loads.append)
kept = optimizer.param_groups[0]

accelerator = Accelerator(cpu=True)
model, prepared = accelerator.prepare(model, optimizer)
kept["lr"] = 0.0
accelerator.backward(model(torch.ones(1, 2)).sum())
prepared.step()

print("torch", torch.__version__, "| accelerate", version("accelerate"))
print("loads:", len(loads), "| lr of the kept group:", kept["lr"], "| lr of the step:", optimizer.param_groups[0]["lr"])
print("weights after one step from 0:", model.weight.tolist())
assert len(loads) == 1 and optimizer.param_groups[0] is not kept, "the behaviour has changed"
assert model.weight.tolist() == [[-1.0, -1.0]], "the behaviour has changed"
PY
}

if [[ -n "${PYTHON:-}" ]]; then
    check "$PYTHON"
    exit
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
[[ $# -gt 0 ]] || set -- 1.10.0 1.15.0
for version in "$@"; do
    python3 -m venv --clear "$folder/venv"
    "$folder/venv/bin/pip" install --quiet "accelerate==$version" torch==2.14.1 numpy==2.2.6
    check "$folder/venv/bin/python"
done
