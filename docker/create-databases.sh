#!/bin/bash
# Run once by PostgreSQL's image, when its volume is empty: a database each for the ledger, the gateway's own
# store and Airflow, each with an owner of its own who can't see the others'; and who may read the ledger.
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
create access "$ACCESS_DB_PASSWORD"
create airflow "$AIRFLOW_DB_PASSWORD"

psql --username postgres --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname tallybook \
    --set password="$QUOTAS_DB_PASSWORD" <<'SQL'
CREATE ROLE quotas LOGIN PASSWORD :'password';
GRANT CONNECT ON DATABASE tallybook TO quotas;
ALTER DEFAULT PRIVILEGES FOR ROLE tallybook GRANT SELECT ON TABLES TO quotas;
SQL
