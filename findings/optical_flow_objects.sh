#!/usr/bin/env bash
# One optical flow object of OpenCV for pictures of several sizes: what does a small picture leave behind?
# A TV-L1 object keeps the number of scales that fit the smallest picture it has seen, and a DIS object its finest scale,
# for ever: later pictures get another flow than from a fresh object. At one size, a second call equals the first.
#
# Usage: findings/optical_flow_objects.sh [VERSION ...]        opencv-contrib-python-headless, default: 4.13.0.92 5.0.0.93
#        PYTHON=python3 findings/optical_flow_objects.sh       without installing
set -euo pipefail

check() {
    "$1" - <<'PY'
import cv2
import numpy as np

cv2.setNumThreads(1)


def pair(height, width, right):
    """Return smooth noise, and the same moved to the right."""
    noise = np.random.default_rng(0).random((height, width + right)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    grey = (255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())).astype(np.uint8)
    return np.ascontiguousarray(grey[:, right:]), np.ascontiguousarray(grey[:, :width])


def medium_dis():
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)


SMALL, LARGE = pair(20, 24, 1), pair(256, 341, 8)
OBJECTS = [
    ("TV-L1", cv2.optflow.DualTVL1OpticalFlow_create, "getScalesNumber", 5, 2),
    ("DIS, medium", medium_dis, "getFinestScale", 1, 0),
]
print("opencv", cv2.__version__)
for name, make, setting, before, after in OBJECTS:
    fresh, used = make(), make()
    expected, again = fresh.calc(*LARGE, None), fresh.calc(*LARGE, None)
    used.calc(*SMALL, None)
    found = used.calc(*LARGE, None)
    settings = getattr(fresh, setting)(), getattr(used, setting)()
    medians = [round(float(np.median(flow[..., 0])), 2) for flow in (expected, found)]
    print(f"{name}: second call equal: {np.array_equal(expected, again)}")
    print(f"  after a small picture: {setting} {settings[1]} instead of {settings[0]}, median motion {medians[1]} instead")
    print(f"  of {medians[0]} pixels, largest difference {np.abs(expected - found).max():.2f} pixels")
    assert np.array_equal(expected, again), "the behaviour has changed"
    assert settings == (before, after), "the behaviour has changed"
    assert not np.array_equal(expected, found), "the behaviour has changed"
PY
}

if [[ -n "${PYTHON:-}" ]]; then
    check "$PYTHON"
    exit
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
[[ $# -gt 0 ]] || set -- 4.13.0.92 5.0.0.93
for version in "$@"; do
    python3 -m venv --clear "$folder/venv"
    "$folder/venv/bin/pip" install --quiet "opencv-contrib-python-headless==$version" "numpy==2.2.6"
    check "$folder/venv/bin/python"
done
