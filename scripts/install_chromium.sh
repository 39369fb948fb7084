#!/usr/bin/env bash
# Installs Chromium for the tests of pages, where none is found: Debian's package where this is Debian
# and may be changed, else Playwright's own. Without one these tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then
    exit 0
  fi
done
if grep -qs '^ID=debian' /etc/os-release && ((EUID == 0)); then
  echo "installing chromium by apt-get" >&2
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install \
    chromium fonts-dejavu-core >/dev/null
else
  scripts/setup_venv.sh dev
  .venv/bin/python -m playwright install --only-shell chromium
fi
