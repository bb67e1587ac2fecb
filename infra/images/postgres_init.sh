#!/usr/bin/env bash
# Runs once, on an empty data folder: a database per service, each owned by a login of its own.
set -euo pipefail

for name in prefect mlflow retroln; do
  # psql quotes what it is given by --set, so a password may hold any character
  psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
    --set name="$name" --set password="$(<"/run/secrets/postgres_$name")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname prefect \
  --command 'CREATE EXTENSION IF NOT EXISTS pg_trgm'
