ARG REGISTRY
FROM $REGISTRY/samples/bash:1
COPY page.html /srv/index.html
CMD ["httpd", "-f", "-p", "80", "-h", "/srv"]
