#!/usr/bin/env bash
# A medical network that is built under torch.device("meta"), then a filter bank of a sound, in one process.
# The first import of MONAI brings in torchaudio.compliance.kaldi, whose constant EPSILON is a tensor made at import.
# Under torch.device("meta") it has no data, for the rest of the process: every filter bank on the CPU fails. With the
# import before the device context, the same two calls work.
#
# Usage: findings/monai_under_meta.sh                    installs torch and torchaudio 2.11.0, MONAI 1.6.1
#        PYTHON=python3 findings/monai_under_meta.sh     without installing
set -euo pipefail

check() {
    "$1" - "$2" <<'PY'
import sys

import torch

is_first = sys.argv[1] == "first"
if is_first:
    import monai.networks.nets
with torch.device("meta"):
    import monai.networks.nets

    monai.networks.nets.UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))
assert "torchaudio.compliance.kaldi" in sys.modules, "MONAI no longer imports it: the behaviour has changed"

import torchaudio
from torchaudio.compliance import kaldi

try:
    found = str(tuple(kaldi.fbank(torch.sin(torch.arange(16000.0))[None]).shape))
except NotImplementedError as error:
    found = f"NotImplementedError: {error}"
print(f"torch {torch.__version__}, torchaudio {torchaudio.__version__}, monai {monai.__version__}")
print(f"import before the device context: {is_first}; EPSILON on {kaldi.EPSILON.device}; filter bank: {found}")
assert kaldi.EPSILON.device.type == ("cpu" if is_first else "meta"), "the behaviour has changed"
assert found.startswith("(98, 23)" if is_first else "NotImplementedError"), "the behaviour has changed"
PY
}

both() {
    check "$1" inside
    check "$1" first
}

if [[ -n "${PYTHON:-}" ]]; then
    both "$PYTHON"
    exit
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.11.0 torchaudio==2.11.0 monai==1.6.1 numpy==2.4.6
both "$folder/venv/bin/python"
