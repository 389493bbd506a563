#!/usr/bin/env bash
# Makes .venv/ in this checkout: our code over a warm environment that every checkout with the same pins shares.
#
# The warm environment (2.7 GB) lies outside the checkout, is keyed by the digest of the pin lists and of
# Python's version, and is made under a lock, so a second run and a second checkout cost a second.
#
#   KM_ENV_HOME   where warm environments lie   (default: $XDG_CACHE_HOME/km-server, ~/.cache/km-server)
#   KM_PYTHON     the Python to use             (default: python3.11, else python3)
#   KM_PIP_ARGS   more arguments for pip, e.g. the index of CPU builds of torch where the default index has
#                 CUDA builds only
#
# With --for-tests it also sees to a Chromium, which the tests of the web page need.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${KM_PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$python" ] || { echo "setup: no Python found; install Python 3.11 or set KM_PYTHON" >&2; exit 2; }
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$version" = 3.11 ] || {
  echo "setup: $python is Python $version, but the pinned wheels are for 3.11; set KM_PYTHON to a Python 3.11" >&2
  exit 2
}

home=${KM_ENV_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/km-server}
digest=$(cat deploy/requirements-cpu.txt deploy/requirements-dev.txt | sha256sum | cut -c1-12)
env="$home/env-$version-$digest"
mkdir -p "$home"

exec 9>"$home/setup.lock"
flock 9

if [ ! -f "$env/.complete" ]; then
  echo "setup: installing the pinned packages into $env (once; about two minutes and 2.7 GB)"
  rm -rf "$env"
  "$python" -m venv "$env"
  # The list is complete and known to work together; resolving it again would pull CUDA builds of packages
  # that the CPU engine does not use (see the head of requirements-cpu.txt).
  # shellcheck disable=SC2086
  "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps ${KM_PIP_ARGS:-} \
    -r deploy/requirements-cpu.txt -r deploy/requirements-dev.txt
  "$env/bin/python" -c 'import torch; assert torch.version.cuda is None, "setup: this torch is a CUDA build; name an index of CPU builds in KM_PIP_ARGS"'
  touch "$env/.complete"
fi

stamp="$env $(sha256sum pyproject.toml | cut -c1-12) $(pwd -P)"
if [ "$(cat .venv/.stamp 2>/dev/null || true)" != "$stamp" ]; then
  rm -rf .venv
  "$env/bin/python" -m venv --without-pip .venv
  packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "import site; site.addsitedir('$env/lib/python$version/site-packages')" > "$packages/warm-environment.pth"
  "$env/bin/python" -m pip --python .venv/bin/python install --quiet --disable-pip-version-check \
    --no-deps --no-build-isolation --editable .
  printf '%s' "$stamp" > .venv/.stamp
fi

if [ "${1:-}" = --for-tests ] && [ -z "${KM_TEST_CHROMIUM:-}" ] && ! command -v chromium >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing chromium, which the tests of the web page need (once)"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null
  else
    echo "setup: the tests of the web page need a Chromium and will fail without:" >&2
    echo "setup:   sudo apt-get install chromium    (or name one in KM_TEST_CHROMIUM)" >&2
  fi
fi
