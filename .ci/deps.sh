#!/usr/bin/env bash
# Makes sure that what kiln or its tests need beside Go is on this host.
#
#	.ci/deps.sh run     what a server and the examples need
#	.ci/deps.sh test    that, and what the tests need
#	.ci/deps.sh compose what .ci/compose needs
#
# As root on Debian it installs what is missing; otherwise it says what to do and exits with 2.
set -euo pipefail

missing=()

# need PACKAGE CHECK... adds the package to the missing ones if the check fails.
need() {
	local package=$1
	shift
	"$@" >/dev/null 2>&1 || missing+=("$package")
}

program() { PATH=$PATH:/usr/sbin:/sbin command -v "$1"; }

compose_works() { docker-compose version || HOME=/nonexistent DOCKER_CONFIG=/nonexistent docker compose version; }

static_busybox() {
	local dir
	dir=$(mktemp -d)
	"$(dirname "$0")/../examples/base/prepare.sh" "$dir" && rm -r "$dir" || { rm -r "$dir"; return 1; }
}

check() {
	missing=()
	need runc program runc
	need busybox-static static_busybox
	need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
	if [ "$1" = compose ]; then
		need git program git
		need make program make
		need docker.io program dockerd
		need docker-compose compose_works
	fi
	if [ "$1" = test ]; then
		need gcc program gcc # the race detector
		need libc6-dev test -e /usr/include/stdlib.h
		need git program git
		need make program make
		need skopeo program skopeo
		need docker.io program dockerd # as a client of the registry
	fi
}

# satisfied succeeds if nothing is missing any more.
satisfied() {
	[ ${#missing[@]} -eq 0 ] || return 1
	if [ "$(id -u)" -ne 0 ]; then
		echo "$0: containers need mounts, namespaces and networks. Try again as root" >&2
		exit 2
	fi
}
case "${1:-}" in
run | test | compose) ;;
*)
	echo "usage: $0 run|test|compose" >&2
	exit 2
	;;
esac
check "$1"
satisfied && exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
	echo "installing ${missing[*]}" >&2
	export DEBIAN_FRONTEND=noninteractive
	log=$(mktemp)
	{ apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null ||
		{ cat "$log" >&2; rm "$log"; exit 1; }
	rm "$log"
	check "$1"
	satisfied && exit 0
fi
echo "$0: missing: ${missing[*]}. Try: sudo apt-get install ${missing[*]}" >&2
exit 2
