# One image for every process: `paddock api`, `paddock worker run|llm|plan|build|record|upkeep`, `paddock migrate`.
FROM python:3.11-slim-bookworm

RUN apt-get update && apt-get install -y --no-install-recommends bubblewrap && rm -rf /var/lib/apt/lists/*
WORKDIR /srv/paddock
COPY requirements-runtime.lock requirements-uv.lock ./
RUN pip install --no-cache-dir --require-hashes --no-deps -r requirements-uv.lock \
    && uv pip install --system --no-cache --compile-bytecode --require-hashes -r requirements-runtime.lock
COPY . .
RUN pip install --no-cache-dir hatchling && pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --create-home --uid 10001 paddock && install -d -o paddock /var/lib/paddock

USER paddock
ENV PADDOCK_DATA_DIR=/var/lib/paddock PADDOCK_HOST=0.0.0.0 PADDOCK_PORT=8000
EXPOSE 8000
CMD ["paddock", "api"]
