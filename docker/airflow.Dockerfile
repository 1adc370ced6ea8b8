# Airflow with billing and its DAGs, from the repository's root: docker build -f docker/airflow.Dockerfile -t tallybook-airflow .
FROM python:3.12.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/opt/tallybook/bin:$PATH
WORKDIR /build
RUN python -m venv /opt/tallybook
# Not Airflow's own image: its packages are others than those that constraints.txt pins and the tests run on.
COPY constraints.txt pyproject.toml README.md ./
RUN pip install --constraint constraints.txt '.[billing,airflow,executors]'
# All packages, because the command line refuses a setting that none of them knows.
COPY tallybook tallybook
COPY serving serving
COPY billing billing
RUN pip install --no-deps --force-reinstall . \
    && tallybook close --help \
    && python -I -c "import billing.daily"

FROM python:3.12.13-slim-bookworm
RUN useradd --uid 10001 --home-dir /opt/airflow --create-home --shell /usr/sbin/nologin tallybook \
    && install -d -o tallybook -g tallybook -m 0750 /opt/airflow/logs /opt/airflow/state \
        /var/lib/tallybook /var/lib/tallybook/journal /var/lib/tallybook/reports /var/lib/tallybook/outbox
COPY --from=build /opt/tallybook /opt/tallybook
COPY dags /opt/airflow/dags
ENV PATH=/opt/tallybook/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/airflow/dags \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    TALLYBOOK_JOURNAL_DIR=/var/lib/tallybook/journal \
    TALLYBOOK_REPORTS_DIR=/var/lib/tallybook/reports \
    TALLYBOOK_OUTBOX_DIR=/var/lib/tallybook/outbox
USER 10001
WORKDIR /opt/airflow
EXPOSE 8080
ENTRYPOINT ["airflow"]
CMD ["--help"]
