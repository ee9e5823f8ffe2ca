#!/usr/bin/env bash
# Builds the examples on a server of their own, runs the task of one of them, and fetches what it has
# published as any other client would. Everything is in a temporary directory, on a free port, and
# gone at the end. The exit code is not 0 if anything went wrong.
#
#	examples/demo.sh KILN
set -euo pipefail

kiln=$(realpath "${1:?usage: $0 KILN}")
cd "$(dirname "$0")/.."
started=$SECONDS
tmp=$(mktemp -d -t kiln-demo.XXXXXX)
export KILN_DATA=$tmp/data
unset KILN_SERVER KILN_TOKEN
server=

title() { printf '\n== %s\n' "$*"; }

# stop ends the server softly and waits for it.
stop() {
	[ -n "$server" ] || return 0
	local pid=$server
	server=
	kill -TERM "$pid" 2>/dev/null || true
	wait "$pid"
}

finish() {
	local code=$?
	trap - EXIT
	stop || { echo "demo: the server did not end well" >&2; code=1; }
	if grep -q "$tmp" /proc/self/mounts; then
		echo "demo: mounts are left below $tmp" >&2
		exit 1
	fi
	if [ "$code" -ne 0 ]; then
		echo "demo: failed; the server's log:" >&2
		cat "$tmp/serve.log" >&2 || true
	fi
	rm -rf "$tmp"
	exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

title "kiln serve"
mkfifo "$tmp/ready"
"$kiln" serve --listen 127.0.0.1:0 >"$tmp/ready" 2>"$tmp/serve.log" &
server=$!
exec 3<"$tmp/ready" # opens once the server has it open too
IFS= read -r -t 60 -u 3 ready || { echo "demo: the server is not ready" >&2; exit 1; }
echo "$ready"

title "kiln build -t base:latest examples/base"
examples/base/prepare.sh
"$kiln" build -t base:latest examples/base

title "kiln run examples/hello"
image=$("$kiln" run examples/hello)
echo "$image"

title "kiln runs"
"$kiln" runs

title "pull $image"
go run ./examples/pull -token-file "$KILN_DATA/admin.token" "$image"

title "stop"
stop
tag=${image%@*}
echo "run       ${tag##*:}"
echo "published $image"
echo "the image was pulled back, has that digest, and runs; the demo took $((SECONDS - started)) s"
