# Short names for what the scripts do; `make lock` needs uv (pip install uv).
.PHONY: run test check format lock wheel sample bench

run:
	scripts/run --k-range 2:15

test:
	scripts/test

check:
	.ci/run

format:
	scripts/setup test
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--constraint scripts/locks/constraints.txt

# The run sets hold hatchling and editables too, which the scripts need to install the checkout itself.
lock:
	$(COMPILE) pyproject.toml --extra cpu --extra dask --extra build --output-file scripts/locks/cpu.txt
	$(COMPILE) pyproject.toml --extra cpu --extra dask --extra build --extra test --constraint scripts/locks/cpu.txt \
		--output-file scripts/locks/cpu-test.txt
	$(COMPILE) pyproject.toml --extra gpu --extra dask --extra build --output-file scripts/locks/gpu.txt
	$(COMPILE) pyproject.toml --extra gpu --extra dask --extra build --extra test --constraint scripts/locks/gpu.txt \
		--output-file scripts/locks/gpu-test.txt

wheel:
	scripts/setup test
	.venv/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

sample:
	scripts/setup test
	.venv/bin/python scripts/make_sample_data.py

# Options: make bench BENCH="--quick startup rerun", or BENCH=--json for machines.
bench:
	scripts/setup test
	.venv/bin/python -m scripts.bench $(BENCH)
