# The API without TensorFlow, from the repository's root: docker build -f docker/api.Dockerfile -t tallybook-api .
FROM python:3.12.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/opt/tallybook/bin:$PATH
WORKDIR /build
RUN python -m venv /opt/tallybook
COPY constraints.txt ./
# TensorFlow Serving's messages need TensorFlow's generated message modules: half a megabyte of its two gigabytes.
RUN pip download --no-deps --constraint constraints.txt --dest wheels tensorflow \
    && python -c "import sys, zipfile; \
wheel = zipfile.ZipFile(sys.argv[1]); \
wheel.extractall(sys.argv[2], [n for n in wheel.namelist() if n.endswith('_pb2.py')])" \
        wheels/tensorflow-*.whl "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && pip install --no-deps --constraint constraints.txt tensorflow-serving-api \
    && rm -r wheels
# What it needs changes rarely, the code often.
COPY pyproject.toml README.md ./
RUN pip install --constraint constraints.txt '.[api]'
# All packages, because the command line refuses a setting that none of them knows.
COPY tallybook tallybook
COPY serving serving
COPY billing billing
RUN pip install --no-deps --force-reinstall . \
    && tallybook serve --help \
    && python -I -c "import sys, serving.app; sys.exit('tensorflow' in sys.modules)"

FROM python:3.12.13-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin tallybook \
    && install -d -o tallybook -g tallybook -m 0750 /var/lib/tallybook /var/lib/tallybook/journal
COPY --from=build /opt/tallybook /opt/tallybook
# A thread would keep the memory that one request needed: 40 KB for each of a thousand open streams.
ENV GLIBC_TUNABLES=glibc.malloc.tcache_count=0
ENV PATH=/opt/tallybook/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TALLYBOOK_HOST=0.0.0.0 \
    TALLYBOOK_JOURNAL_DIR=/var/lib/tallybook/journal \
    TALLYBOOK_MODELS_DIR=/models
USER 10001
WORKDIR /var/lib/tallybook
EXPOSE 8000
CMD ["tallybook", "serve"]
