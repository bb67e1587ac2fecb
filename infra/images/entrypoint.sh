#!/usr/bin/env bash
# Settings are plain variables, secrets are files. For every NAME_FILE that points into the folder of
# secrets, NAME gets the file's content and NAME_FILE goes. Other *_FILE variables are left alone.
set -euo pipefail

folder="${SECRETS_FOLDER:-/run/secrets}"
for variable in $(compgen -e | grep '_FILE$' || true); do
  path="${!variable}"
  [[ "$path" == "$folder"/* ]] || continue
  [[ -r "$path" ]] || { echo "$variable: cannot read $path; expected a secret that uid $(id -u) may read" >&2; exit 1; }
  value="$(<"$path")"
  [[ -n "$value" ]] || { echo "$variable: $path is empty; expected a secret" >&2; exit 1; }
  export "${variable%_FILE}=$value"
  unset "$variable"
done
exec "$@"
