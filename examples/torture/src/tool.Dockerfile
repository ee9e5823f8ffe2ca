ARG REGISTRY
FROM ${REGISTRY}/base:latest
WORKDIR /opt/tool
