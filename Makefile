# Every task of the project, each by one name. Pass options on with ARGS: make demo ARGS="--crash"
ARGS ?=
BIN = .venv/bin
PROTOS = $(wildcard proto/servicectl/_pb/*.proto proto/servicectl/_pb/*/*.proto)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test conformance check format lock proto bench clean parts

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/.demo ## install what runs servicectl and show the whole loop (no root needed; ARGS="--crash", "--json")
	@$(BIN)/servicectl demo $(ARGS)

test: parts .venv/.dev .venv-handler/.made check ## install what the tests need, run `make check` and every test (ARGS="-k name"; STRICT=1 turns SKIP into failure)
	$(BIN)/python -m pytest -n auto --dist worksteal $(if $(CI),--durations=15) $(ARGS)

conformance: parts .venv/.dev .venv-handler/.made ## hold us against every trap of the estate, one line each (docs/conformance.md)
	@$(BIN)/python -m pytest -q tests/conformance $(ARGS)

check: .venv/.dev ## linter, formatter, types, import direction, generated code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	sh tools/check-proto $(PROTOS)

format: .venv/.dev ## rewrite the code as `make check` wants it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: ## pin the dependencies of pyproject.toml again, with hashes (ARGS=--upgrade takes newer ones; needs uv)
	sh tools/lock $(ARGS)

proto: .venv/.dev ## generate servicectl/_pb from proto/
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --grpc_python_out=. --pyi_out=. $(PROTOS)

bench: .venv/.dev ## measure (ARGS="startup --quick --json")
	@$(BIN)/python -m bench $(or $(ARGS),startup)

clean: ## remove what make installed and what the tools left
	rm -rf .venv .venv-handler .venv-evidently node_modules build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

parts:
	@sh tools/install-parts

.venv/.demo: requirements/demo.txt pyproject.toml tools/venv tools/find-python
	@sh tools/venv requirements/demo.txt
	@touch $@

# The development lock holds every pin of the demo's, so it satisfies both.
.venv/.dev: requirements/dev.txt pyproject.toml tools/venv tools/find-python
	@sh tools/venv requirements/dev.txt
	@touch .venv/.demo $@

# The engine that the estate's handler has, apart from ours.
.venv-handler/.made: requirements/handler.txt tools/venv tools/find-python
	@sh tools/venv requirements/handler.txt .venv-handler
	@touch $@

# What `python -m bench drift` is compared with: `make .venv-evidently/.made`. 80 packages that nothing else needs.
.venv-evidently/.made: requirements/evidently.txt tools/venv tools/find-python
	@sh tools/venv requirements/evidently.txt .venv-evidently
	@touch $@
