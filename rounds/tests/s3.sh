#!/usr/bin/env bash
# Rounds in a bucket of a real S3 server: moto, in a virtual environment beside the build. Needs Python and its registry.
set -euo pipefail
cd "$(dirname "$0")/../.."

port="${PORT:-5055}"
folder="${CARGO_TARGET_DIR:-target}/s3"
[ -x "$folder/bin/moto_server" ] || { python3 -m venv "$folder"; "$folder/bin/pip" install --quiet 'moto[server]==5.2.5'; }
"$folder/bin/moto_server" --host 127.0.0.1 --port "$port" >"$folder/server.log" 2>&1 &
server=$!
trap 'kill "$server"' EXIT
for _ in $(seq 100); do
    curl --silent --fail --request PUT "http://127.0.0.1:$port/catelier" >/dev/null && break
    sleep 0.2
done
# `TEST` is a test binary that is built already.
CATELIER_S3_ENDPOINT="http://127.0.0.1:$port" ${TEST:-cargo test --package catelier-rounds --test it --} --nocapture s3::
