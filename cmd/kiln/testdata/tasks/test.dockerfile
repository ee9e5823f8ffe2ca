ARG REGISTRY
FROM $REGISTRY/samples/bash:1
CMD ["sh", "-c", "n=0; until wget -q -O - $TARGET | grep works; do n=$((n + 1)); test $n -lt 100 || exit 1; sleep 0.1; done"]
