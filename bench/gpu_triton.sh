#!/usr/bin/env bash
# The Triton parts of bench/gpu.sh. Usage: bench/gpu_triton.sh test|rates. PYTHON (python3) picks the interpreter.
#   test    the kernels and the engine on the GPU; most of it is compiling, so in several processes where pytest-xdist is
#   rates   bench/gpu_triton.py: the fused likelihood, a training step, images/s
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
unset TRITON_INTERPRET

case ${1:-} in
  test)
    several=()
    if "$python" -c 'import xdist' 2>/dev/null; then several=(-n 6); fi
    "$python" -m pytest -q -m gpu -k "triton or kernels" "${several[@]}" tests
    ;;
  rates) "$python" bench/gpu_triton.py --json "${OUT:-bench/results}/gpu-triton.json" ;;
  *)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
