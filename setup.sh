#!/bin/sh
# Makes .venv, where pyinfra and llamafleet run, with a Python 3.10 or newer and nothing else: no
# pip, no venv module, no root. `--dev` adds the tools of the tests. Nothing is changed outside this
# folder: uv and its cache are in .uv.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# Prints what a Python is; exit status 0 if it can do the rest.
check='
import sys
version = ".".join(map(str, sys.version_info[:3]))
if sys.version_info < (3, 10):
    sys.exit(version)
try:
    import ssl, urllib.request, zipfile
except ImportError as error:
    sys.exit("%s without %s" % (version, error.name))
'

found=
for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
  path=$(command -v "$name") || continue
  if what=$("$path" -I -c "$check" 2>&1); then
    exec "$path" -I "$root/llamafleet/bootstrap.py" "$@"
  fi
  found="$found${found:+, }$path $what"
done
echo "setup.sh: found ${found:-no python3 in PATH}; expected Python 3.10 or newer with ssl;" \
  "next: apt-get install python3, dnf install python3.12, or use another machine:" \
  "the hosts of the fleet need no setup.sh" >&2
exit 1
