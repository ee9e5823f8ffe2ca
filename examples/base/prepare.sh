#!/bin/sh
# Puts the host's static busybox into this directory, or the one given, for the Dockerfile to copy.
set -eu

dir=${1:-$(dirname "$0")}
for busybox in "${BUSYBOX:-}" /bin/busybox /usr/bin/busybox; do
	[ -x "$busybox" ] || continue
	# A program that names a loader in its head is not static; the image has no loader.
	if head -c 1024 "$busybox" | grep -aq '/ld-'; then
		continue
	fi
	cp "$busybox" "$dir/busybox"
	chmod 755 "$dir/busybox"
	exit 0
done
echo "prepare.sh: no static busybox on this host. Try: apt-get install busybox-static, or BUSYBOX=/path/to/one $0" >&2
exit 2
