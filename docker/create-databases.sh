#!/bin/bash
# Run once by PostgreSQL's image, when its volume is empty: a database each for the ledger and for Airflow,
# each with an owner of its own who can't see the other's.
set -euo pipefail

create() {
    psql --username postgres --no-psqlrc --quiet --set ON_ERROR_STOP=1 \
        --set name="$1" --set password="$2" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

create tallybook "$LEDGER_DB_PASSWORD"
create airflow "$AIRFLOW_DB_PASSWORD"
