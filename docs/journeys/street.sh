#!/usr/bin/env bash
# Street scenes in CamVid's layout: 11 classes, void as class 11, an official split.
# Usage: street.sh FOLDER, which has train, trainannot, val, valannot, test and testannot.
set -euo pipefail
cd "$1"
NAMES=(sky building pole road pavement tree sign fence car pedestrian cyclist)

# Pixels of class 11 are left out of the loss and of every score.
nestedseg train --images train --labels trainannot --val-images val --val-labels valannot \
  --classes 11 --ignore 11 --class-names "${NAMES[@]}" \
  --widths 16 32 64 --patch 64 --epochs "${EPOCHS:-30}" --out run

# Masks are PNG files with the classes as indices, and their colours as a palette.
nestedseg predict run/model test --out predictions
nestedseg score predictions/masks testannot --classes 11 --ignore 11 --class-names "${NAMES[@]}"
