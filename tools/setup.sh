#!/bin/sh
# Installs the Debian packages that tessera needs, naming them first. Usage: setup.sh build, or
# demo, check, neon for what the demo, the checks and the cross build of `make check-all` need beside.
set -eu
packages="gcc libc6-dev make cmake pkg-config git libjansson-dev libpcre2-dev libutf8proc-dev
  libzip-dev libzstd-dev zlib1g-dev libcmocka-dev"
case "${1:-build}" in
  demo) packages="$packages python3 python3-pip" ;;
  neon) packages="$packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static" ;;
  check) packages="$packages clang clang-format clang-tidy cppcheck libclang-rt-14-dev valgrind" ;;
esac
command -v dpkg-query >/dev/null 2>&1 || exit 0   # not Debian: CMake names what is missing
missing=""
for package in $packages; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "ok installed" ||
    missing="$missing $package"
done
[ -n "$missing" ] || exit 0
echo "tessera needs these Debian packages, which are missing here:$missing"
sudo=""
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null 2>&1 || {
    echo "Install them as root, for instance: apt-get install$missing" >&2
    exit 1
  }
  sudo="sudo"
fi
echo "Installing them with: $sudo apt-get install"
$sudo apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
