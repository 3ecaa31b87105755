# The front door: `make`, `make test`, `make demo`, and what else a developer runs.
# CMake does the building; this file names the tasks. Extra settings: make CMAKE_ARGS=-DTSR_CUDA=ON
MAKEFLAGS += --no-print-directory
BUILD ?= build
JOBS ?= $(shell nproc)
COMMIT := $(shell git describe --always --dirty --abbrev=10 2>/dev/null || echo unknown)

all: setup $(BUILD)/configured
	@cmake --build $(BUILD) -j$(JOBS) --target tessera
	@[ $(BUILD) != build ] || ln -sf build/tessera tessera

# Names what is missing on this machine and installs it; does nothing when all is there.
setup:
	@tools/setup.sh build

$(BUILD)/configured: CMakeLists.txt Makefile FORCE | setup
	@cmake -S . -B $(BUILD) $(CMAKE_ARGS) -DTSR_COMMIT=$(COMMIT) > $(BUILD).log 2>&1 || \
	  { cat $(BUILD).log >&2; exit 1; }
	@rm -f $(BUILD).log; touch $@

tests: all
	@cmake --build $(BUILD) -j$(JOBS)

test: tests
	@tests/run.sh $(BUILD)

demo: all
	@tools/setup.sh demo
	@python3 tools/demo.py $(DEMO)

# Everything that takes longer than `make test`: other compilers, sanitizers, valgrind, more damaged
# files, static analysis, and the comparisons with outside programs. Each target stands alone, and
# says in its last line that it found nothing.
check-all: format-check lint test sanitize-address sanitize-thread check-clang valgrind damage isa \
  check-neon fuzz compare
	@echo "check-all: nothing found"

check-tools:
	@tools/setup.sh check

sanitize-address:
	@$(MAKE) -s test BUILD=build-asan CMAKE_ARGS="-DTSR_SANITIZE=address,undefined"
	@echo "sanitize-address: nothing found"
sanitize-thread:
	@$(MAKE) -s test BUILD=build-tsan CMAKE_ARGS="-DTSR_SANITIZE=thread"
	@echo "sanitize-thread: nothing found"
check-clang: check-tools
	@CC=clang $(MAKE) -s test BUILD=build-clang CMAKE_ARGS="-DCMAKE_C_FLAGS=-Werror"
	@echo "check-clang: no warning, nothing found"
# Valgrind knows AVX2 but not AVX-512. It runs everything some fifty times slower: the tests go
# without the evaluation data, on the small models that they make themselves.
valgrind: check-tools tests
	@TSR_ISA=avx2 TSR_VALGRIND=1 TSR_SHARED=/none tests/run.sh $(BUILD)
	@echo "valgrind: nothing found"
damage: tests
	@TSR_DAMAGE_ROUNDS=20000 tests/run.sh $(BUILD) $(notdir $(wildcard $(BUILD)/tests/test_damage*))
	@echo "damage: nothing found"
isa: tests
	@for isa in reference avx2 avx512 avx512bf16; do TSR_ISA=$$isa tests/run.sh $(BUILD) || exit 1; done
	@echo "isa: nothing found"
# A cross build for AArch64, whose tests run under qemu-user: some twenty times slower, so like
# valgrind's without the evaluation data.
NEON_RUN := qemu-aarch64-static -L $(CURDIR)/build-neon/sysroot
check-neon:
	@tools/setup.sh neon
	@tools/neon_sysroot.sh build-neon/sysroot
	@$(MAKE) -s BUILD=build-neon build-neon/configured CMAKE_ARGS="\
	  -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/tools/aarch64.cmake -DCMAKE_SYSROOT=$(CURDIR)/build-neon/sysroot \
	  -DCMAKE_C_FLAGS=-Werror"
	@cmake --build build-neon -j$(JOBS) > build-neon/build.log || { tail -40 build-neon/build.log; exit 1; }
	@TSR_EMULATOR="$(NEON_RUN)" TSR_SHARED=/none tests/run.sh build-neon
	@echo "check-neon: nothing found"
# One file at a time: clang-tidy 14 mistakes va_lists of all but the first file for uninitialized.
lint: check-tools $(BUILD)/configured
	@cppcheck -q --error-exitcode=1 --enable=warning,portability --inline-suppr \
	  --suppress=missingIncludeSystem --library=tools/cppcheck.cfg -I src -j$(JOBS) src
	@git ls-files 'src/*.c' ':!src/kernel/cuda/device*.c' | xargs -P$(JOBS) -n1 clang-tidy -p $(BUILD) --quiet 2>/dev/null
	@echo "lint: nothing found"
# Each target runs for FUZZ_SECONDS; what it found interesting is kept in build-fuzz/corpus.
FUZZ_SECONDS ?= 30
fuzz: check-tools
	@CC=clang $(MAKE) -s BUILD=build-fuzz \
	  CMAKE_ARGS="-DTSR_FUZZ=ON -DTSR_TESTS=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo" build-fuzz/configured
	@cmake --build build-fuzz -j$(JOBS) > /dev/null
	@tests/fuzz/run.sh build-fuzz $(FUZZ_SECONDS)
	@echo "fuzz: nothing found"
compare: all
	@tools/compare.sh

# Compiles the GPU kernels for every supported card (no card needed), fails on spilled registers, and
# rewrites results/cuda_kernels.csv. NVCC names the compiler.
cuda-check:
	@tools/cuda_check.sh
	@tools/cuda_check_learn.sh
	@tools/cuda_check_serve.sh
# Builds the CUDA backend and rehearses tools/gpu_check.sh without a card. Needs nvcc and cuBLASLt.
gpu-check-dry:
	@tools/gpu_check.sh --dry || [ $$? -eq 77 ]
.PHONY: cuda-check gpu-check-dry

# The long table of quality: hours on two cores, restartable row by row. TABLE takes the driver's
# options: make table TABLE="--rows 'dense,greedy*,tile*' --seeds 1,2,3 --tasks-dir DIR"
table: all
	@tools/demo_data.py tessera-demo
	@python3 bench/table.py tessera-demo $(TABLE)

# The ledgers under results/ that say how good and how fast this machine's masks are: the table, and
# the learning speed beside PyTorch's, for which PYTHON needs torch and transformers.
PYTHON ?= python3
results: table
	@$(PYTHON) bench/learn_speed.py tessera-demo/model.gguf tessera-demo/learn.jsonl
	@PYTHON=$(PYTHON) $(PYTHON) bench/speed.py tessera-demo --peers

# Decode and prefill speed alone: make bench BENCH="--peers" PYTHON=venv/bin/python
bench: all
	@tools/demo_data.py tessera-demo
	@PYTHON=$(PYTHON) $(PYTHON) bench/speed.py tessera-demo $(BENCH)
.PHONY: bench

# What int8 and int4 weights cost and gain, into results/quant.csv: make quant QUANT="--mask FILE"
quant: all
	@tools/demo_data.py tessera-demo
	@python3 bench/quant.py tessera-demo $(QUANT)
.PHONY: quant

install: all
	@cmake --install $(BUILD) $(if $(PREFIX),--prefix $(PREFIX))

format:
	@clang-format -i $$(git ls-files '*.c' '*.h')

format-check: check-tools
	@clang-format --dry-run -Werror $$(git ls-files '*.c' '*.h')
	@echo "format-check: nothing to format"

clean:
	@rm -rf build build-* tessera

FORCE:
.PHONY: all setup tests test demo check-all check-tools sanitize-address sanitize-thread check-clang \
  valgrind damage isa check-neon fuzz lint compare table results install format format-check clean \
  FORCE
