#!/usr/bin/env bash
# Makes trt_native/page/static/libraries.js from the packages that scripts/page_libraries pins.
# Needs node and npm; only a change of these packages needs it.
set -euo pipefail
cd "$(dirname "$0")/page_libraries"
npm ci --no-audit --no-fund --silent
npm run --silent build
