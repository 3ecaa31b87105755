# For the scripts that compile GPU kernels: $nvcc, its $version, and a folder $work that goes at exit.
nvcc=${NVCC:-}
for candidate in nvcc /usr/local/cuda/bin/nvcc; do
  [ -n "$nvcc" ] || nvcc=$(command -v "$candidate" || true)
done
[ -n "$nvcc" ] || {
  echo "cuda-check needs CUDA's compiler: put nvcc on the PATH or name it with NVCC=" >&2
  exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
