#!/bin/sh
# Unpacks Debian's arm64 libraries into a folder of their own, for `make check-neon`: nothing is
# installed, and the system's own packages stay out of it. Usage: tools/neon_sysroot.sh SYSROOT
set -eu
packages="libc6-dev libjansson-dev libpcre2-dev libutf8proc-dev libzip-dev libzstd-dev zlib1g-dev
  libcmocka-dev"
mkdir -p "$1"
sysroot=$(cd "$1" && pwd)
[ ! -f "$sysroot/complete" ] || exit 0
# An apt with no package installed, for arm64, from the system's own sources: it works out what the
# packages need in turn, down to the C library.
state=$sysroot/apt
mkdir -p "$state/lists/partial" "$state/archives/partial"
: >"$state/status"
foreign_apt() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$state" \
    -o Dir::State::status="$state/status" -o Dir::Cache="$state" -o APT::Sandbox::User= "$@"
}
echo "fetching arm64 libraries into $1:" $packages
foreign_apt update
# shellcheck disable=SC2086
foreign_apt install -y --no-install-recommends --download-only $packages >/dev/null
for package in "$state"/archives/*.deb; do dpkg -x "$package" "$sysroot"; done
rm -r "$state"
touch "$sysroot/complete"
