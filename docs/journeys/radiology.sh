#!/usr/bin/env bash
# Radiology: CT volumes in Hounsfield units, with an organ and a lesion.
# Usage: radiology.sh FOLDER, which has train/images, train/labels, test/images and test/labels.
set -euo pipefail
cd "$1"

# --window clips to soft tissue. Volumes of another spacing than 2 mm are resampled.
nestedseg train --images train/images --labels train/labels --classes 3 \
  --class-names background organ lesion --window -160 240 --spacing 2 2 2 \
  --widths 8 16 32 --patch 16 --batch 2 --epochs "${EPOCHS:-30}" --out run

# Masks have the grid and the affine of their volume.
nestedseg predict run/model test/images --out predictions
nestedseg score predictions/masks test/labels --classes 3 --class-names background organ lesion
