#!/bin/sh
# Check style, types and scripts; changes nothing and says every finding: tests/check.sh
#
# Needs ruff, mypy and shellcheck in PATH, or in the .venv that tests/run makes.
set -eu

main() {
    cd "$(dirname "$0")/.."
    PATH=$PWD/.venv/bin:$PATH
    failed=0
    check ruff check --quiet --output-format concise --config tests/ruff.toml arpanet.py tests
    check ruff format --check --quiet --diff --config tests/ruff.toml arpanet.py tests
    cd tests
    # each file by its name, and each directory apart: to mypy lab.py and lab/ are one module
    check mypy --no-error-summary --config-file mypy.ini ../arpanet.py ./*.py unit/*.py bench/*.py
    check mypy --no-error-summary --config-file mypy.ini ../arpanet.py ./*.py lab/*.py
    # shellcheck disable=SC2046
    check shellcheck $(list_scripts sh) $(list_scripts bash)
    for script in $(list_scripts sh); do check dash -n "$script"; done
    return $failed
}

# list_scripts SHELL: every file here and at the top whose first line asks for that shell.
list_scripts() {
    for file in ../*.sh ../.ci/* ./* bench/*; do
        if [ -f "$file" ] && head -n 1 "$file" | grep -q "^#!.*[/ ]$1\$"; then echo "$file"; fi
    done
}

check() {
    "$@" || { echo "tests/check.sh: failed: $*" >&2; failed=1; }
}

main "$@"
