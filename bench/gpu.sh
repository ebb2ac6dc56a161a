#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, on a machine without network: builds in place, tests, checks, measures, trains.
#
# Usage: bench/gpu.sh first [OPTIONS]    450 s: is the engine right, how fast is it
#        bench/gpu.sh second [OPTIONS]   240 s: what failed, again; racecheck, plain PyTorch, the fused likelihood, teams
#        bench/gpu.sh train [OPTIONS]    a piece of the training of the CIFAR-10 model; run it again for the next
#        bench/gpu.sh PART...            parts of the first two alone, by their names in bench/gpu_parts.py
# Whatever fails, the rows so far are in $OUT (default: bench/results), as JSON lines, and so is what the parts printed:
# at most 8 files, none over 16 MiB. FROM: the $OUT of an earlier run. PYTHON (python3): the interpreter.
# Of `train`: DATA, torchvision's root folder or compact copies; PIECE_SECONDS (500). Other options: bench/gpu_minutes.py --help, and
# bench/gpu_train.py --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD:$PWD/bench:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"

if (($# == 0)); then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
earlier=()
[[ -z ${FROM:-} ]] || earlier=(--from "$FROM")
if [[ $1 == train ]]; then
  shift
  exec "$python" bench/gpu_train.py --data "${DATA:?is to name the folder of the data}" \
    --seconds "${PIECE_SECONDS:-500}" "${earlier[@]}" "$@"
fi
exec "$python" bench/gpu_minutes.py "${earlier[@]}" "$@"
