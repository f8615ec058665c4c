#!/usr/bin/env bash
# bash recipes/prepare/ultrafeedback.sh [DATASET]
# UltraFeedback with a prior, and a constraint fitted to it. The target win probability of the chosen response
# is 0.65 for the most similar pairs (a margin of 0.62) and 0.9 for the least similar ones (2.2).
set -euo pipefail
dataset=${1:-trl-lib/ultrafeedback_binarized}
out=runs/data/ultrafeedback
mkdir -p "$out"
for split in train test; do
    pcrm prior "$dataset" --split "$split" --prior lexical --out "$out/$split.parquet"
done
pcrm fit "$out/train.parquet" --win-alike 0.65 --win-unlike 0.9 --out "$out.toml" --force
