# Make: one model for each recipe, `recipes/NAME.yaml` -> `models/NAME`. Use it with
#
#     include tokensurgeon.mk
#     all: models
#
# What a model was made from is compared by hashes, not by times: where nothing changed, make is done at once.
TOKENSURGEON ?= tokensurgeon
# Nothing is written for a model with such a warning, or with a text that takes so many more bits per byte.
GATES ?= --fail-on TS017 --max-bpb-increase 0.15

MODELS := $(patsubst recipes/%.yaml,models/%,$(wildcard recipes/*.yaml))

.PHONY: models verify-models $(MODELS)

models: $(MODELS)

$(MODELS): models/%: recipes/%.yaml
	@mkdir -p models
	$(TOKENSURGEON) run $< --set output=$@ --if-unchanged skip --force $(GATES)

verify-models: models
	for model in $(MODELS); do $(TOKENSURGEON) verify $$model || exit; done
