# make            everything a change must pass
# make build      the binary, ./bin/pvault
# make verify-page  the offline verifier for a browser, ./dist/verify/index.html
# make test       the tests with the race detector, real servers included; the process
#                 jail without it, since each jail starts a program built for races anew
# make test-long  what takes longer than CI allows: 10,000 kills, 100,000 calls on a starved
#                 machine, fuzzing, soak
# make fuzz       each fuzz target for FUZZTIME
# make bench      benchmarks with allocations, and pvault bench
# make depaware   that the binary depends on nothing new, see cmd/pvault/depaware.txt
# make fix        formats and modernises the code
# make update     rewrites golden files and depaware.txt; read the diff before you commit it
FUZZTIME ?= 1m
TOOL = go tool -modfile=tools/go.mod

check: lint test depaware
	go mod tidy -diff

depaware:
	$(TOOL) depaware --check ./cmd/pvault

build:
	CGO_ENABLED=0 go build -trimpath -o bin/pvault ./cmd/pvault

verify-page:
	go run ./contrib/verify-page/build -o dist/verify

lint:
	go vet ./...
	$(TOOL) golangci-lint run

# Ten minutes, the default, are too few for the daemon's tests on two busy cores.
test:
	go test -race -timeout 20m $$(go list ./... | grep -v '/internal/sandbox/process$$')
	go test ./internal/sandbox/process

test-long:
	PVAULT_LONG=1 go test -timeout 6h -run 'Kill|Soak|OnPostgres|EraseOneField' ./internal/daemon ./internal/ledger
	PVAULT_LONG=1 go test -timeout 2h -run Starved -v ./internal/daemon
	PVAULT_REQUIRE=postgres,rekor-v1,judges go test -timeout 1h -run RekorV1Server ./internal/anchor
	$(MAKE) fuzz

fuzz:
	set -e; for p in $$(go list ./...); do for f in $$(go test $$p -list '^Fuzz' | grep '^Fuzz' || true); do \
	go test $$p -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME); done; done

bench: build
	go test -run '^$$' -bench . -benchmem . ./capability ./evidence ./internal/...
	./bin/pvault bench

fix:
	go fix ./...
	$(TOOL) golangci-lint fmt

update:
	UPDATE=1 go test ./...
	$(TOOL) depaware --update ./cmd/pvault

.PHONY: check depaware build verify-page lint test test-long fuzz bench fix update
