#!/usr/bin/env bash
# Kubernetes Secrets from the files that `python3 -m infra.images.make_secrets` wrote; each holds only
# what its users need. A repeat replaces them. Options for kubectl may follow the folder.
set -euo pipefail

folder="${1:-var/secrets}"
shift || true
[[ -r "$folder/prefect_login" ]] || { echo "no secrets in $folder: run python3 -m infra.images.make_secrets $folder" >&2; exit 1; }

secret() {
  local name="$1" key files=()
  shift
  for key in "$@"; do files+=("--from-file=$folder/$key"); done
  echo "---"
  kubectl create secret generic "$name" --namespace retroln --dry-run=client --output yaml "${files[@]}"
}

{
  secret retroln-postgres postgres_superuser postgres_prefect postgres_mlflow postgres_retroln
  secret retroln-seaweedfs s3.json s3_internal
  secret retroln-prefect postgres_prefect
  secret retroln-prefect-login prefect_login
  secret retroln-mlflow postgres_mlflow mlflow_admin mlflow_session mlflow_encryption s3_mlflow_access s3_mlflow_secret
  secret retroln-provision s3_admin_access s3_admin_secret mlflow_admin mlflow_operator mlflow_gpu mlflow_reviewer
  secret retroln-data s3_retroln_access s3_retroln_secret postgres_retroln
  secret retroln-operator mlflow_operator
  secret retroln-ingest pseudonym_key
  secret retroln-gpu mlflow_gpu
} | { if [[ "${DRY_RUN:-}" ]]; then cat; else kubectl apply "$@" --filename -; fi; }
