#!/usr/bin/env bash
# Everything under infra/ that only a container engine or a cluster could run is checked here, without
# either and without network: compose file, images, manifests, job templates, shell scripts.
# shellcheck disable=SC2329 # functions that `check` calls by name
set -euo pipefail
cd "$(dirname "$0")/.."

bin=.venv/bin
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
failed=0

check() { # check NAME COMMAND...: one line when it passes, all of its output when it does not
  local name="$1"
  shift
  if "$@" >"$work/out" 2>&1; then
    echo "ok    $name"
  else
    echo "FAIL  $name"
    sed 's/^/      /' "$work/out"
    failed=1
  fi
}

silent() { # a warning is a finding, too
  "$@" >"$work/said" 2>&1 || { cat "$work/said"; return 1; }
  [[ ! -s "$work/said" ]] || { cat "$work/said"; return 1; }
}

manifests="$work/manifests.yaml"
render() { # kubectl renders here; without it the files are checked as they are
  if command -v kubectl >/dev/null; then
    silent_to "$manifests" kubectl kustomize --load-restrictor LoadRestrictionsNone infra/kubernetes
  else
    for file in infra/kubernetes/*.yaml; do
      [[ "$file" == */kustomization.yaml ]] || { echo "---"; cat "$file"; } >>"$manifests"
    done
  fi
}
silent_to() { # like silent, with what is printed kept in a file
  local file="$1"
  shift
  "$@" >"$file" 2>"$work/said" && [[ ! -s "$work/said" ]] || { cat "$work/said"; return 1; }
}

secrets() { # make_secrets.sh makes the Secrets of secrets.example.yaml, from what make_secrets.py writes
  command -v kubectl >/dev/null || return 0
  "$bin/python" -m infra.images.make_secrets "$work/secrets" &&
    DRY_RUN=1 bash infra/kubernetes/make_secrets.sh "$work/secrets" >"$work/secrets.yaml" &&
    "$bin/kubernetes-validate" --strict --quiet "$work/secrets.yaml" &&
    "$bin/python" -m infra.kubernetes.check_templates --secrets "$work/secrets.yaml"
}

mapfile -t scripts < <(git ls-files --cached --others --exclude-standard '*.sh' .ci/run)
mapfile -t images < <(find infra/images -name '*.Dockerfile' | sort)

check "compose file resolves (docker-compose config)" \
  silent "$bin/docker-compose" --profile '*' -f infra/compose.yaml config -q
check "compose file fits its schema (check-jsonschema)" \
  "$bin/check-jsonschema" --builtin-schema vendor.compose-spec infra/compose.yaml
check "compose file is hardened (compose-lint)" \
  "$bin/compose-lint" check --fail-on low --strict-config --config infra/.compose-lint.yml infra/compose.yaml
check "${#images[@]} image files (hadolint)" "$bin/hadolint" --failure-threshold style "${images[@]}"
check "YAML (yamllint)" "$bin/yamllint" --strict -c infra/.yamllint infra prefect.yaml
check "${#scripts[@]} shell scripts (shellcheck)" "$bin/shellcheck" "${scripts[@]}"
check "manifests render (kustomize)" render
check "manifests fit Kubernetes' schemas (kubernetes-validate)" \
  "$bin/kubernetes-validate" --strict --quiet "$manifests" infra/kubernetes/secrets.example.yaml
check "job templates and references to secrets (Prefect's templating)" \
  "$bin/python" -m infra.kubernetes.check_templates "$manifests"
check "secrets that are made are those referred to (make_secrets)" secrets
exit "$failed"
