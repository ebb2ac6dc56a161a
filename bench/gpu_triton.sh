#!/usr/bin/env bash
# The Triton part of bench/gpu.sh: its tests on the GPU, then its rates. PYTHON (python3) picks the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
unset TRITON_INTERPRET

"$python" -m pytest -q -m gpu tests/test_kernels_step.py tests/test_kernels_choose.py tests/test_kernels_mixture.py \
  tests/test_kernels_engine.py
"$python" -m pytest -q tests/test_engines.py -k triton
"$python" bench/gpu_triton.py --json "${OUT:-bench/results}/gpu-triton.json"
