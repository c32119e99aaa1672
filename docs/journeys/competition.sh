#!/usr/bin/env bash
# A competition: photographs with masks beside them, folds by patient, an ensemble to hand in.
# Usage: competition.sh FOLDER, which has train.csv, data and test.
set -euo pipefail
cd "$1"

# train.csv has the columns image, label and group: a group is never in two folds.
for fold in 0 1; do
  nestedseg train --list train.csv --fold "$fold" --folds 2 --binary \
    --widths 16 32 64 --patch 64 --epochs "${EPOCHS:-30}" --out "fold_$fold"
done

# Both models, averaged over mirrored images; probabilities as 8-bit images for a later threshold.
nestedseg predict fold_0/model fold_1/model test --tta --probabilities uint8 --no-overlay \
  --out predictions
nestedseg predict fold_0/model fold_1/model data --image-suffix "" --out check
