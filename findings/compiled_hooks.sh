#!/usr/bin/env bash
# A forward hook that is registered on a submodule after the first call of a compiled model: does it fire?
# It does if the submodule had a hook before compilation, and silently never otherwise. With
# torch._dynamo.config.skip_nnmodule_hook_guards = False before the first call it always does.
#
# Usage: findings/compiled_hooks.sh [TORCH_VERSION ...]     default: 2.11.0 2.14.1
#        PYTHON=python3 findings/compiled_hooks.sh          without installing
set -euo pipefail

check() {
    "$1" - <<'PY'
import torch
from torch import nn

CALLS = 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x))


def calls_of_a_late_hook(had_a_hook, is_guarded):
    torch.compiler.reset()
    torch._dynamo.config.skip_nnmodule_hook_guards = not is_guarded
    model, x, seen = Net(), torch.randn(2, 4), []
    if had_a_hook:
        model.head.register_forward_hook(lambda *_: None)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    model.head.register_forward_hook(lambda *_: seen.append(1))
    for _ in range(CALLS):
        compiled(x)
    return len(seen)


assert torch._dynamo.config.skip_nnmodule_hook_guards, "the default has changed"
print("torch", torch.__version__)
for had_a_hook, is_guarded, expected in [(True, False, CALLS), (False, False, 0), (False, True, CALLS)]:
    found = calls_of_a_late_hook(had_a_hook, is_guarded)
    print(f"hook before compilation: {had_a_hook}; hooks guarded: {is_guarded}; late hook: {found} of {CALLS} calls")
    assert found == expected, f"expected {expected}: the behaviour has changed"
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
