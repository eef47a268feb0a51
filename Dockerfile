# The image of tokencache: the binary, the libraries that it needs, a CA bundle and a user; no shell.
#
#   docker build --tag registry.example.com/tokencache:0.1.0 .
#   docker buildx build --platform linux/amd64,linux/arm64 --tag registry.example.com/tokencache:0.1.0 --push .
#
# It is reproducible: the same sources, base image and Debian packages give the same layer, so the same files with the same
# owners, modes and times, on however many cores. Only the image's description says when it was built; by buildah with
# `--timestamp 0` it does not, and the digest is the same too. Each platform is built on itself (by an emulator where the
# builder is another one).
# A tag can move: to build from the very same base again, give its digest, --build-arg BASE=rust@sha256:….
ARG BASE=rust:1.95-slim-bookworm
FROM ${BASE} AS build
# The same CA bundle for all who build on the same base; the TLS library is written partly in C, the allocator wholly.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev make && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
# Not built here, but Cargo wants to see all targets that the manifest names.
COPY benches benches
COPY examples examples
COPY tests tests
COPY src src
# Paths of the builder do not get into the binary.
ENV CARGO_INCREMENTAL=0 RUSTFLAGS="--remap-path-prefix=/src=. --remap-path-prefix=/usr/local/cargo=cargo"
# Kernels for arm64 have pages of up to 64 KiB, and the allocator must know the largest.
RUN if [ "$(uname -m)" = aarch64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi && \
    cargo build --release --locked --bin tokencache
COPY hack/image.sh hack/image.sh
RUN hack/image.sh root /image --bin target/release/tokencache

FROM scratch
COPY --from=build /image/ /
ENV PATH=/bin
# By its number, so that Kubernetes can see that it is not root.
USER 65532
ENTRYPOINT ["/bin/tokencache"]
