#!/bin/sh
# csaw.sh DATA [OUT]: scan, repair, measure and use a net of CSAW-HackML-2020 with the command line.
# DATA holds the competition's files, nets in DATA/nets. LABELS=0-11 scans only these labels, to see it work.
set -eu
case "${1:---help}" in
  -h | --help) sed -n '2,3s/^# //p' "$0"; exit 0 ;;
esac
data=$1
out=${2:-goodnet-csaw}
net=$data/nets/anonymous_1_bd_weights.h5
clean=$data/clean_validation_data.h5
mkdir -p "$out"

# Exit code 0 is clean, 1 suspect, 2 inconclusive; only 1 leaves a label to repair.
code=0
goodnet scan "$net" --arch deepid --clean "$clean" ${LABELS:+--labels "$LABELS"} --out "$out/scan" || code=$?
[ "$code" -eq 1 ] || exit "$code"

# Exit code 1 is "not accepted": the GoodNet is there because of --keep-rejected, and is measured all the same.
goodnet repair "$net" --arch deepid --clean "$clean" --scan "$out/scan" --method nc-unlearn \
  -o "$out/goodnet.safetensors" --keep-rejected --out "$out/repair" || [ $? -eq 1 ]

goodnet evaluate "$out/goodnet.safetensors" --before "$net" --arch deepid --clean "$data/clean_test_data.h5" \
  --poisoned "$data/anonymous_1_poisoned_data.h5" --out "$out/evaluate"

echo "goodnet predict $out/goodnet.safetensors FACE.png   # 1283 means: triggered"
