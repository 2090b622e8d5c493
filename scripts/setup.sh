# Sourced by ./check and ./demo, in the repository's root: makes .venv once, and again when pyproject.toml changes.
#   set_up core   what `pip install burnish` gives        set_up dev   the same and the tools of ./check
# Sets $python.  Uses uv where there is one, else python -m venv and pip.  PYTHON=... chooses the interpreter.

python=.venv/bin/python
torch=2.13.0 # the one release the figures in docs/log.md were made with; pyproject.toml allows others

stop() { # stop WHAT DO
    printf '%s\n  do     %s\n' "$1" "$2" >&2
    exit 2
}

set_up() {
    for stamp in .venv/burnish-dev ".venv/burnish-$1"; do # dev holds all that core does
        if cmp -s pyproject.toml "$stamp"; then return; fi
    done
    echo "Setting up .venv (once; a few minutes, most of it PyTorch) ..." >&2
    [ -x "$python" ] || make_venv
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null # an environment of uv's has no pip
    "$python" -c 'import torch' 2>/dev/null || install_torch
    case $1 in
    dev) install -e '.[dev]' ;;
    *) install -e . ;;
    esac || stop "The dependencies cannot be installed" "see pip's message above; behind a mirror, set PIP_INDEX_URL or PIP_FIND_LINKS"
    cp pyproject.toml ".venv/burnish-$1"
}

make_venv() {
    if has_uv; then
        uv venv --quiet --seed --python "${PYTHON:->=3.11}" .venv
        return
    fi
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -m venv .venv
            return
        fi
    done
    stop "There is no Python 3.11 or later that can make a virtual environment" \
        "install one (Debian: apt install python3-venv), or uv: https://docs.astral.sh/uv"
}

# PyPI's PyTorch for Linux is the one for NVIDIA, several GB.  Without such a GPU we want the CPU build, a tenth of it:
# first from wherever this machine's pip is told to look (a mirror, a folder), then from PyTorch's own index.
install_torch() {
    if [ "$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1; then
        quietly install "torch==$torch+cpu" && return
        install "torch==$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu && return
        echo "PyTorch's CPU build cannot be reached; taking the large one, which runs on a CPU as well" >&2
    fi
    install "torch==$torch" || stop "PyTorch $torch cannot be installed" "install torch into .venv yourself and run this again"
}

install() { # uv does not read pip's own settings (mirrors, folders), so that pip tries what uv cannot find
    if has_uv && quietly uv pip install --quiet --python "$python" "$@"; then return; fi
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
}

has_uv() { command -v uv >/dev/null 2>&1; }
quietly() { "$@" 2>/dev/null; }
