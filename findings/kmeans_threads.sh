#!/usr/bin/env bash
# K-means of scikit-learn on the same float32 rows, with the same random_state, on one thread and on two.
# The labels of some percent of the rows differ: each thread adds up its share of the rows, sums in single precision
# depend on how they are split, and later iterations amplify that. In double precision all labels are equal here.
#
# Usage: findings/kmeans_threads.sh [VERSION ...]        scikit-learn, default: 1.7.2 1.9.1
#        PYTHON=python3 findings/kmeans_threads.sh       without installing
set -euo pipefail

check() {
    OMP_NUM_THREADS=2 "$1" - <<'PY'
import numpy as np
import sklearn
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

ROWS, FEATURES, CLUSTERS = 20_000, 64, 31
rows = np.random.default_rng(1).normal(size=(ROWS, FEATURES))


def labels(dtype, threads):
    with threadpool_limits(limits=threads):
        return KMeans(CLUSTERS, n_init=1, random_state=0).fit_predict(rows.astype(dtype))


print("scikit-learn", sklearn.__version__, "numpy", np.__version__)
for dtype, differs in [(np.float32, True), (np.float64, False)]:
    one, again, two = labels(dtype, 1), labels(dtype, 1), labels(dtype, 2)
    share = np.mean(one != two)
    print(f"{np.dtype(dtype)}: {ROWS:,} rows, {CLUSTERS} clusters; labels that differ on two threads: {share:.2%}")
    assert np.array_equal(one, again), "one thread is no longer repeatable"
    assert (share > 0) == differs, "the behaviour has changed"
PY
}

if [[ -n "${PYTHON:-}" ]]; then
    check "$PYTHON"
    exit
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
[[ $# -gt 0 ]] || set -- 1.7.2 1.9.1
for version in "$@"; do
    python3 -m venv --clear "$folder/venv"
    "$folder/venv/bin/pip" install --quiet "scikit-learn==$version" "numpy==2.2.6"
    check "$folder/venv/bin/python"
done
