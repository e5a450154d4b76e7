#!/usr/bin/env bash
# Distances of 0.02 between features and their prototypes, by `torch.cdist` with its default mode, of 25 rows and of 26.
# With 25 rows they are right. With one row more, as when a batch or the number of classes grows, a product of matrices
# is used: each distance becomes 0 or about 0.03, and the gradient with respect to a feature, which has length 1, is gone
# wherever 0 came out. The mode that takes differences is right for any number of rows.
#
# Usage: findings/cdist_of_more_rows.sh [TORCH_VERSION ...]     default: 2.11.0 2.14.1
#        PYTHON=python3 findings/cdist_of_more_rows.sh          without installing
set -euo pipefail

check() {
    "$1" - <<'PY'
import torch

EXACT = "donot_use_mm_for_euclid_dist"
DEFAULT = "use_mm_for_euclid_dist_if_necessary"


def measured(rows, mode):
    """Return the distances of rows to themselves moved by 0.02, and the lengths of their gradients."""
    torch.manual_seed(0)
    features = (3 * torch.randn(rows, 512).relu()).requires_grad_()
    prototypes = features.detach() + 0.02 / 512**0.5
    distances = torch.cdist(features, prototypes, compute_mode=mode).diagonal()
    distances.sum().backward()
    return distances.detach(), features.grad.norm(dim=1)


print("torch", torch.__version__)
for rows in (25, 26):
    for name, mode in (("default", DEFAULT), ("by differences", EXACT)):
        distances, slopes = measured(rows, mode)
        print(
            f"  {rows} rows, {name:14} distances {distances.min():.4f} to {distances.max():.4f}, "
            f"lengths of gradients {slopes.min():.2f} to {slopes.max():.2f}, gone: {(slopes == 0).sum()}"
        )
        is_right = bool(((distances - 0.02).abs() < 1e-4).all() and ((slopes - 1).abs() < 1e-3).all())
        assert is_right == (rows == 25 or mode == EXACT), "the behaviour has changed"
        if not is_right:
            assert distances.min() == 0 and distances.max() > 0.03 and (slopes == 0).any(), "the behaviour has changed"
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
