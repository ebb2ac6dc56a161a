#!/usr/bin/env bash
# Trains on a GPU that is at hand for short spells: pieces of under 9 minutes, each resuming from the last.
#
# Usage: bench/scripts/train_gpu.sh DATASET OUT [PIECES] [options of `pxfast train`...]
#   bench/scripts/train_gpu.sh cifar10 paper.safetensors 1 --root DATA --preset full --budget 4h --compile
#
# Runs PIECES pieces (default: 1); run it again, with the same options, for more. A checkpoint beside OUT, in shards of
# at most 15 MB, is where the next piece begins. Exit code 0: the training is over, and the model measured on the test
# set; 75: there is more to do. Several GPUs: TRAIN='torchrun --nproc-per-node=4 -m -- pxfast.cli'.
# PIECE_SECONDS (500): of a piece, start and compilation included. DEVICE (cuda): the device.
set -euo pipefail

if (($# < 2)); then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
dataset=$1 out=$2
shift 2
pieces=1
if [[ ${1-} =~ ^[0-9]+$ ]]; then
  pieces=$1
  shift
fi
read -ra train <<<"${TRAIN:-pxfast}"
name=$(basename "$out")
checkpoint=$(dirname "$out")/${name%.*}.checkpoint.safetensors

for ((piece = 1; piece <= pieces; piece++)); do
  resume=()
  [[ ! -e $checkpoint ]] || resume=(--resume)
  code=0
  # told by Ctrl-C to finish its step and keep it; kill -9 35 s later, which costs what came after the last checkpoint
  timeout --signal=INT --kill-after=35 "${PIECE_SECONDS:-500}" \
    "${train[@]}" train "$dataset" --out "$out" --device "${DEVICE:-cuda}" "${resume[@]}" "$@" || code=$?
  case $code in
    0) exit 0 ;;
    124 | 137) echo "piece $piece of $pieces is done" >&2 ;; # its time was over
    *) exit "$code" ;;
  esac
done
exit 75
