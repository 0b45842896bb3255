#!/usr/bin/env bash
# ./run.sh                          lists the recipes: the whole pipelines of the systems
# ./run.sh RECIPE [flags...]        installs what a recipe needs, and runs it
# ./run.sh test [arguments...]      installs and runs the tests, with arguments of pytest
# ./run.sh lint                     installs and runs ruff
# ./run.sh install EXTRA,EXTRA,...  creates .venv, and installs the package with these extras of setup.py
#
# PYTHON chooses the interpreter that creates .venv.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}

make_venv() {
  [ -x .venv/bin/python ] || "$python" -m venv .venv
}

# Installs the package with the extras $1 in .venv, unless that was done for this setup.py already.
install() {
  local stamp=".venv/installed_$1"
  make_venv
  if ! cmp -s setup.py "$stamp"; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${1:+[$1]}"
    cp setup.py "$stamp"
  fi
}

if [ -x .venv/bin/python ]; then
  python=.venv/bin/python
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $python is older than Python 3.11; name a newer one with PYTHON=..." >&2
  exit 1
fi
case ${1:-} in
  install) install "${2:-}" ;;
  lint)
    install test
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    ;;
  test)
    shift
    install test
    # One process more than cores, as tests wait for processes of their own; the tests of a file stay together, as they
    # share what is slow to make.
    exec .venv/bin/python -m pytest --numprocesses=$(($(getconf _NPROCESSORS_ONLN) + 1)) --dist=loadfile \
      --no-loadscope-reorder "$@"
    ;;
  "" | -h | --help) exec "$python" -m nn.pipeline --help ;;
  *)
    # A recipe that does not exist is refused before anything is made.
    "$python" -m nn.pipeline "$1" --help > /dev/null
    make_venv
    exec .venv/bin/python -m nn.pipeline "$@" --install
    ;;
esac
