#!/usr/bin/env bash
# Make docs/example-report.html and its picture docs/example-report.png from results of one's own.
#
# Usage: bench/make_example_report.sh DATA OUT [option of pxfast evaluate ...]
#
# DATA: torchvision's root folder. OUT: the output folder; when this is killed, the same command goes on from there.
# Options such as --images 1000, --classifiers DIR or --train-budget 2h go to every evaluation; without --images there
# are 500 of each data set. Takes hours on a few processors: most of it for the attacks of Carlini and Wagner.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
data=$1 out=$2
shift 2

for what in table2 table1 reproduction adaptive figures; do
  pxfast evaluate "$what" --root "$data" --out "$out" --images 500 "$@"
done
pxfast report "$out" --out docs/example-report.html --force
python bench/report_picture.py docs/example-report.html docs/example-report.png
