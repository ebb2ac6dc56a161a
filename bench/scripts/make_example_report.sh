#!/usr/bin/env bash
# Make docs/example-report.html and its picture, docs/example-report.png, from results of one's own.
#
# Usage: bench/scripts/make_example_report.sh DATA OUT CLASSIFIERS [IMAGES]
#
# DATA: torchvision's root folder. OUT: the output folder; when this is killed, the same command goes on from there.
# CLASSIFIERS: the folder of trained classifiers; rows whose classifier is not in it are left out, and named. IMAGES: of
# each data set, by default 512; the figures take at most 256, and the attacks that know the purifier 32. Hours on a few
# processors, most of them for the attack of Carlini and Wagner. `pxfast evaluate reproduction` and `adaptive` add their
# tables to the same folder; the latter's protocol takes days with ADP.
set -euo pipefail
if [ $# -lt 3 ] || [ $# -gt 4 ]; then
  sed -n '4,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
data=$(realpath "$1") out=$(realpath -m "$2") classifiers=$(realpath "$3")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
common=(--root "$data" --out "$out" --classifiers "$classifiers")
images=${4:-512}

for table in table2 table1; do
  pxfast evaluate "$table" "${common[@]}" --no-train --images "$images"
done
pxfast evaluate table bench/experiments/adaptive_one_run.toml "${common[@]}" --no-train \
  --rows pixeldefend,adaptive-pixeldefend
pxfast evaluate figures "${common[@]}" --images "$((images < 256 ? images : 256))" --lbfgs-images 4 --lbfgs-starts 1
pxfast report "$out" --out docs/example-report.html --force
python bench/scripts/report_picture.py docs/example-report.html docs/example-report.png
