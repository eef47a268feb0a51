# The common tasks of this repository. The scripts install or build missing dependencies.

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz chaos soak bench lint crd manifests docs cluster-up cluster-down

CARGO := cargo
NAME := default
CHAOS = $(if $(SECONDS),TOKENCACHE_CHAOS_SECONDS=$(SECONDS)) $(if $(SEED),TOKENCACHE_CHAOS_SEED=$(SEED))

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Demo on a local Kubernetes node (root; KEEP=1 leaves it running)
	hack/demo.sh $(if $(KEEP),--keep)

test: ## Run all tests: unit and property tests, and the scenarios on a real API server
	hack/test.sh

fuzz: ## Test all parsers of external input with random input (SECONDS=60 each)
	TOKENCACHE_FUZZ=$(or $(SECONDS),60) $(CARGO) test --locked --lib fuzz_tests

chaos: ## Chaos test: three controllers under injected faults (SECONDS=600, SEED)
	$(CHAOS) hack/chaos.sh

soak: ## Measure whether a controller under load grows, for an hour (SECONDS=3600)
	$(CHAOS) hack/chaos.sh --soak

bench: ## Measure the controller against a baseline of plain API calls (ROWS="new refresh"; see hack/bench.sh --help)
	hack/bench.sh

lint: ## Check format, clippy, rustdoc and the shell scripts
	hack/lint.sh

crd: ## Generate crds/tokencache.yaml and its copy in the chart
	$(CARGO) run --locked --quiet -- crd > crds/tokencache.yaml.new
	mv crds/tokencache.yaml.new crds/tokencache.yaml
	cp crds/tokencache.yaml charts/tokencache/files/crd.yaml

manifests: ## Generate config/ from the chart
	hack/manifests.sh

docs: ## Generate docs/api.md from the types
	$(CARGO) run --locked --quiet --example api-reference > docs/api.md.new
	mv docs/api.md.new docs/api.md

cluster-up: ## Bring up a local Kubernetes cluster that stays (NAME=default; NODE=1 for one that runs pods, as root)
	hack/cluster.sh up --name $(NAME) $(if $(NODE),--node)

cluster-down: ## Take it down (NAME=default)
	hack/cluster.sh down --name $(NAME)
