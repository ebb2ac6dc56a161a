#!/usr/bin/env bash
# Make docs/example-report.html and its picture, docs/example-report.png.
#
# Usage: bench/scripts/make_example_report.sh DATA OUT [IMAGES [JUDGED]]
#
# DATA: torchvision's root folder. OUT: the output folder; when this is killed, the same command goes on from there.
# IMAGES: of each data set, of the figures, by default 1000. JUDGED: of the attack that knows the purifier, by default
# 128. Tables 1 and 2, of 1,000 images, are those of bench/results, as `pxfast evaluate` wrote them in hours. The rest
# takes one and a half hours of a processor with AVX2 alone.
set -euo pipefail
if [ $# -lt 2 ] || [ $# -gt 4 ]; then
  sed -n '4,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
data=$(realpath "$1") out=$(realpath -m "$2") images=${3:-1000} judged=${4:-128}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
common=(--root "$data" --out "$out")

mkdir -p "$out/tables"
cp bench/results/{table1-fashion-mnist,table2-cifar10}.json "$out/tables"
pxfast evaluate figures "${common[@]}" --images "$images" --lbfgs-images 4 --lbfgs-starts 1
for each in "cifar10 16" "fashion-mnist 32"; do
  read -r dataset eps <<<"$each"
  pxfast evaluate adaptive "${common[@]}" --images "$judged" --dataset "$dataset" --purifier "pixeldefend:eps=$eps" \
    --columns bpda:steps=100
done
pxfast report "$out" --out docs/example-report.html --force
python bench/scripts/report_picture.py docs/example-report.html docs/example-report.png
