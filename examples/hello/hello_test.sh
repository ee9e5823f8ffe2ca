# Tests the program of the image that this runs in.
set -eu

check() { # check GOT WANT
	if [ "$1" != "$2" ]; then
		echo "FAIL: got \"$1\", want \"$2\""
		exit 1
	fi
	echo "ok: $1"
}

check "$(hello)" "Hello from kiln, world!"
check "$(hello kiln)" "Hello from kiln, kiln!"
if [ -e /src ]; then
	echo "FAIL: the image contains the sources"
	exit 1
fi
echo "ok: the image contains no sources"
