#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, on a machine without network: builds in place, tests, checks, measures.
#
# Usage: bench/gpu.sh [PART...]     no part: all of them, in this order
#   build        the compiled module, in place, for this GPU's architecture
#   test         pytest -m gpu, but for the Triton engine
#   memcheck     compute-sanitizer memcheck on a small decode, both orders, both precisions
#   racecheck    compute-sanitizer racecheck on the same
#   throughput   images/s of every network beside plain PyTorch's and the matrix rate
#   teams        the CIFAR-10 network by blocks in a team, with clusters that share weights, with and without wgmma
#   latency      one image, either order
#   crossover    either order by the batch
#   memory       device memory an image
#   triton-test  pytest -m gpu of the Triton kernels and engine (bench/gpu_triton.sh), which compile for minutes
#   triton       their rates
# Each part takes under 8 minutes and can be run alone. Measured rows go to bench/results/<gpu>.json.
# PYTHON (python3), PXFAST_CUDA_ARCHS (this GPU's), PART_SECONDS (480): the limit of a part.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/bench:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"

limit() { timeout --signal=INT --kill-after=20 "${PART_SECONDS:-480}" "$@"; }

capability() {
  "$python" -c 'import torch; major, minor = torch.cuda.get_device_capability(); print(f"{major}{minor}" + "a" * (major == 9))'
}

build() {
  PXFAST_CUDA=1 PXFAST_CUDA_ARCHS="${PXFAST_CUDA_ARCHS:-$(capability)}" limit "$python" setup.py build_ext --inplace
  "$python" -c 'from pxfast.engines import cuda; assert cuda.unavailable() is None, cuda.unavailable()'
}

sanitizer() { # compute-sanitizer's tool; any finding is a failure
  local checker
  checker=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  limit "$checker" --tool "$1" --error-exitcode 9 "$python" bench/gpu_small_decode.py
}

part() {
  echo "== $1" >&2
  case $1 in
    build) build ;;
    test) limit "$python" -m pytest -q -m gpu -k "not (triton or kernels)" tests ;;
    memcheck | racecheck) sanitizer "$1" ;;
    throughput | teams | latency | crossover | memory) limit "$python" bench/gpu_report.py "$1" ;;
    triton-test) limit bench/gpu_triton.sh test ;;
    triton) limit bench/gpu_triton.sh rates ;;
    *)
      sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
      return 2
      ;;
  esac
}

if (($# == 0)); then
  set -- build test memcheck racecheck throughput teams latency crossover memory triton-test triton
fi
failed=()
for name in "$@"; do
  part "$name" || failed+=("$name")
done
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
