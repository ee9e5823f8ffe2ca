# The image of kiln: a server, or a worker beside a BuildKit daemon. docker-compose.yml has both.
#
#	docker build -t kiln .

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# The version that kiln says it is, such as 1.2.3; without one it is a development version.
ARG VERSION=
RUN CGO_ENABLED=0 go build -ldflags "-s -w -X main.release=$VERSION" -o /image/usr/bin/kiln ./cmd/kiln
RUN mkdir -p /image/etc/ssl/certs /image/var/lib/kiln /image/tmp && \
	cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ && \
	echo 'kiln:x:65532:65532:kiln:/var/lib/kiln:/none' >/image/etc/passwd && \
	echo 'kiln:x:65532:' >/image/etc/group && \
	chown 65532:65532 /image/var/lib/kiln && chmod 700 /image/var/lib/kiln && chmod 1777 /image/tmp

FROM scratch
COPY --from=build /image /
ENV PATH=/usr/bin KILN_DATA=/var/lib/kiln
USER 65532:65532
EXPOSE 7070
VOLUME /var/lib/kiln
ENTRYPOINT ["kiln"]
