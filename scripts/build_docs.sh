#!/usr/bin/env bash
# Builds the documentation into site/, in an environment of its own (.lanes/docs), with every warning
# as an error, and checks its links and that every public name is in it. Needs Python 3.10 or later,
# but neither PyTorch nor a TensorRT.
#
#   scripts/build_docs.sh            site/index.html is the start page
#   scripts/build_docs.sh serve      shows it at http://127.0.0.1:8000, and follows changes
set -euo pipefail
cd "$(dirname "$0")/.."
if (($# > 1)) || [[ ${1:-serve} != serve ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi

python=${PYTHON:-python3}
environment=.lanes/docs
version=$("$python" -V)
shared= # what the tests' environment has is not installed again
[[ $(.venv/bin/python -V 2>/dev/null) != "$version" ]] || shared=$PWD/.venv
stamp=$environment/.stamp
wanted="$version, $(cat pyproject.toml constraints.txt | cksum), $shared"
if [[ $(cat "$stamp" 2>/dev/null) != "$wanted" ]]; then
  "$python" -m venv --clear "$environment"
  [[ -z $shared ]] || echo "$shared"/lib/python*/site-packages \
    >"$(echo "$environment"/lib/python*/site-packages)/shared.pth"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable '.[docs]'
  printf '%s\n' "$wanted" >"$stamp"
fi

export NO_MKDOCS_2_WARNING=1 # an advertisement
if (($#)); then
  exec "$environment/bin/mkdocs" serve --strict
fi
"$environment/bin/mkdocs" build --strict --site-dir site
"$environment/bin/python" scripts/docs_site/check_site.py site
echo "documentation: site/index.html"
