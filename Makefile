# The front door: `make`, `make test`, `make demo`, and what else a developer runs.
# CMake does the building; this file names the tasks. Extra settings: make CMAKE_ARGS=-DTSR_CUDA=ON
MAKEFLAGS += --no-print-directory
BUILD ?= build
JOBS ?= $(shell nproc)
COMMIT := $(shell git describe --always --dirty --abbrev=10 2>/dev/null || echo unknown)

all: setup $(BUILD)/configured
	@cmake --build $(BUILD) -j$(JOBS) --target tessera
	@ln -sf $(BUILD)/tessera tessera

# Names what is missing on this machine and installs it; does nothing when all is there.
setup:
	@tools/setup.sh build

$(BUILD)/configured: CMakeLists.txt Makefile FORCE
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

install: all
	@cmake --install $(BUILD) $(if $(PREFIX),--prefix $(PREFIX))

format:
	@clang-format -i $$(git ls-files '*.c' '*.h')

format-check:
	@clang-format --dry-run -Werror $$(git ls-files '*.c' '*.h')

clean:
	@rm -rf build build-* tessera

FORCE:
.PHONY: all setup tests test demo install format format-check clean FORCE
