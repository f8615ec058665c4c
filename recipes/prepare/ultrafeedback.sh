#!/usr/bin/env bash
# bash recipes/prepare/ultrafeedback.sh [DATASET]
# UltraFeedback with a prior, and a constraint that is fitted to it: among the most alike responses the
# chosen one is to win with probability 0.65 (a margin of 0.62), among the least alike with 0.9 (2.2).
set -euo pipefail
dataset=${1:-trl-lib/ultrafeedback_binarized}
out=runs/data/ultrafeedback
mkdir -p "$out"
for split in train test; do
    pcrm prior "$dataset" --split "$split" --prior lexical --out "$out/$split.parquet"
done
pcrm fit "$out/train.parquet" --win-alike 0.65 --win-unlike 0.9 --out "$out.toml" --force
