# Both commands of the README in a fresh machine: docker build . runs the tests, and docker run the phantoms.
#   docker build -t segpref .
#   docker run -v "$PWD/out:/out" segpref        # the report in out/index.html
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
WORKDIR /segpref
COPY . .
# The commands are those of the README, so that they cannot differ.
RUN git init -q && \
    sed -n '/^<!-- test command -->$/,/^```$/p' README.md | grep -v -e '^<!--' -e '^```' > test.sh && \
    sed -n '/^<!-- run command -->$/,/^```$/p' README.md | grep -v -e '^<!--' -e '^```' > run.sh && \
    bash -e test.sh
CMD ["bash", "-ec", "source run.sh && mkdir -p /out && cp -r reports/. /out/"]
