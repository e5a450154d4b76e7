#!/usr/bin/env bash
# Code compiled for one instance of a class that has no hooks is reused for the next instance of that class, whose hooks
# on submodules then never run. The other order works: hooks of the first instance do not run for the second. With
# torch._dynamo.config.skip_nnmodule_hook_guards = False before the first call both do.
#
# Usage: findings/compiled_instances.sh [TORCH_VERSION ...]     default: 2.11.0 2.14.1
#        PYTHON=python3 findings/compiled_instances.sh          without installing
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


def calls_of_hooks(first_has_one, is_guarded):
    """Return how often the hook of the one instance that has a hook fires, and for which instance."""
    torch.compiler.reset()
    torch._dynamo.config.skip_nnmodule_hook_guards = not is_guarded
    models, x, seen = [Net(), Net()], torch.randn(2, 4), []
    hooked = models[0] if first_has_one else models[1]
    hooked.head.register_forward_hook(lambda module, *_: seen.append(module is hooked.head))
    for model in models:
        compiled = torch.compile(model, backend="eager")
        for _ in range(CALLS):
            compiled(x)
    assert all(seen), "a hook ran for the instance that has none"
    return len(seen)


assert torch._dynamo.config.skip_nnmodule_hook_guards, "the default has changed"
print("torch", torch.__version__)
for first_has_one, is_guarded, expected in [(True, False, CALLS), (False, False, 0), (False, True, CALLS)]:
    found = calls_of_hooks(first_has_one, is_guarded)
    print(f"hook on instance: {1 if first_has_one else 2}; hooks guarded: {is_guarded}; fired: {found} of {CALLS} calls")
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
