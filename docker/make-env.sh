#!/bin/bash
# Make .env from .env.example: every empty value becomes a secret of its own. An .env that is there is left alone.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
set -o noclobber
while IFS= read -r line; do
    if [[ $line =~ ^[A-Z_]+=$ ]]; then
        line+=$(openssl rand -hex 32)
    fi
    printf '%s\n' "$line"
done <.env.example >"${1:-.env}"
