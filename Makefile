# `make demo` and `make test` are all that a fresh clone needs: both make .venv when it is missing or the lock changed.
PYTHON ?= python3
LOCK := requirements/cpu.lock
READY := .venv/.ready-$(shell cat $(LOCK) pyproject.toml | sha256sum | cut -c1-16)
RUN := .venv/bin
# vLLM's CPU engine binds its threads by these; both can be overridden.
export HF_HUB_DISABLE_TELEMETRY ?= 1
export VLLM_NO_USAGE_STATS ?= 1
# Tests start many processes: what one compiled the next ones read, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-engine test-slow test-browser unit unit-plugin unit-rest test-full test-serving test-gpu test-training test-contract lint check ci clean

demo: $(READY)
	@$(RUN)/mixquant demo $(ARGS)

# Side by side, one core each: the unit tests, then what needs an engine, and beside it what starts other processes or waits.
SIDE_BY_SIDE = $(MAKE) --no-print-directory -j2 --output-sync=target
PARTS := unit-plugin unit-rest test-engine test-slow
test: $(READY)
	@$(SIDE_BY_SIDE) $(PARTS)
# The engine computes in one thread: two on two cores wait for each other, busily, as soon as anything runs beside them.
# Engines of test-slow start bound to the cores, as a user's do; none of them gets to compute.
test-engine test-slow test-training: export OMP_NUM_THREADS = 1
test-engine: export VLLM_CPU_OMP_THREADS_BIND = nobind
test-engine: $(READY)
	$(RUN)/python -m pytest -m "engine and not serving and not browser and not prometheus and not gpu" $(ARGS)
test-slow: $(READY)
	$(RUN)/python -m pytest -p no:langsmith_plugin --ignore=tests/gpu -m "slow and not engine and not serving and not browser and not prometheus and not gpu" $(ARGS)

# Needs Debian's chromium, chromium-driver and prometheus on the PATH.
test-browser: $(READY)
	$(RUN)/python -m pytest -m "browser or prometheus" $(ARGS)

# Two real servers on the CPU, alone, as a pair and behind a router: two engine starts.
test-serving: $(READY)
	$(RUN)/python -m pytest -m serving tests/serving $(ARGS)

# The unit tests in two processes: only the first imports vLLM, which takes as long as a quarter of the tests.
UNIT := -q -p no:langsmith_plugin --ignore=tests/gpu -m "not engine and not slow and not browser and not prometheus and not gpu"
PLUGIN := bench embedded engine langchain_standard precision quant serving test_doctor.py
unit: $(READY)
	@$(SIDE_BY_SIDE) unit-plugin unit-rest
unit-plugin unit-rest: export OMP_NUM_THREADS = 1
unit-plugin:
	$(RUN)/python -m pytest $(UNIT) $(addprefix tests/,$(PLUGIN)) $(ARGS)
unit-rest:
	$(RUN)/python -m pytest $(UNIT) tests $(addprefix --ignore=tests/,$(PLUGIN)) $(ARGS)

# Needs Debian's chromium and prometheus on the PATH as well. Properties are tried with many more examples.
test-full: $(READY)
	$(RUN)/python -m pytest -m "not gpu and not serving" $(ARGS)
	$(RUN)/python -m pytest $(UNIT) -m "hypothesis and not engine and not gpu" --hypothesis-profile=thorough $(ARGS)

# Needs a CUDA GPU, PyTorch, Triton and pytest: python -m pytest -m gpu tests/gpu
test-gpu: $(READY)
	$(RUN)/python -m pytest -m gpu tests/gpu $(ARGS)

# The project that made the embedded model's adapter; its tests also see that the shipped held-out tasks are its own.
test-training: $(READY)
	cd training && ../$(RUN)/python -m pytest -q -p no:langsmith_plugin $(ARGS)

lint: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

# SOURCES="DIR …": unpacked vLLM releases to check beside the installed one.
test-contract: $(READY)
	$(RUN)/python -m mixquant_agents.quant.vllm.contract $(foreach dir,$(SOURCES),--source $(dir))

check: lint test

# All of it at once: whenever one part ends, the next begins. What soon fails comes first, then the longest.
ci: $(READY)
	@$(SIDE_BY_SIDE) lint $(PARTS) test-serving test-browser test-training

$(READY): $(LOCK) pyproject.toml requirements/install.py
	@$(PYTHON) requirements/install.py
	@rm -f .venv/.ready-*
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
