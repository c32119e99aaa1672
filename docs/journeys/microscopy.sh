#!/usr/bin/env bash
# Microscopy: OME-TIFF with several channels; labels are instance numbers.
# Usage: microscopy.sh FOLDER, which has train/images, train/labels, test/images and test/labels.
set -euo pipefail
cd "$1"

# Every channel is used. --binary: each number above 0 is a nucleus.
nestedseg train --images train/images --labels train/labels --binary \
  --widths 16 32 64 --patch 64 --epochs "${EPOCHS:-30}" --out run

# The connected parts of the mask are the instances, averaged over mirrored images.
nestedseg predict run/model test/images --tta --out predictions
nestedseg predict run/model test/images --instances --out predictions
nestedseg score predictions/masks test/labels --binary
