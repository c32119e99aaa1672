#!/usr/bin/env bash
# Satellite tiles: GeoTIFFs of four bands, with pixels that were not seen.
# Usage: satellite.sh FOLDER, which has train/images, train/labels, test/images and test/labels.
set -euo pipefail
cd "$1"

# All four bands are used; pixels with the file's nodata value count nowhere.
nestedseg train --images train/images --labels train/labels --classes 3 \
  --class-names ground forest water \
  --widths 16 32 64 --patch 64 --epochs "${EPOCHS:-30}" --out run

# Masks keep the place on the Earth; polygons can be opened in a GIS.
nestedseg predict run/model test/images --format geotiff --polygons test.geojson \
  --out predictions
nestedseg score predictions/masks test/labels --classes 3 --class-names ground forest water
