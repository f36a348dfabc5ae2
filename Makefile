# What there is to do with this tree. A bare `make` prints this list.

GO      ?= go
BIN     := bin
SEED    ?= 1
SEEDS   ?= 20
FUZZTIME ?= 3s
FAULTS  ?= 60s
MINUTES ?= 10
# What is tested and measured is what is released: programs without C. The race detector alone needs it.
export CGO_ENABLED ?= 0
MILLIONS ?= 1,10
ETCD37  := compat/bin/etcd37
ETCD36  := compat/bin/etcd36
ETCD35  := compat/bin/etcd35
REALTOOLS := compat/bin/etcdctl37 compat/bin/etcdutl37
ETCDCTL35 := compat/bin/etcdctl35
PROMETHEUS := compat/bin/prometheus compat/bin/promtool
APISERVER := compat/bin/kube-apiserver

.PHONY: help build run test check unit race sim crash mutants fuzz auth-test cluster-test chaos failure-test setup-test handbook secure mixed mixed-long moving hostile-test h2 differential gateway v2 proxies observe monitoring kubernetes tools compat bench bench-groups bench-millions release release-test clean

help:
	@echo 'make build         bin/etcd, bin/etcdctl, bin/etcdutl'
	@echo 'make run           start a three-member cluster on loopback and stay up until Ctrl-C'
	@echo 'make test          all of the lanes below but bench, mutants, release-test, mixed-long, monitoring and kubernetes, which take long'
	@echo 'make check         gofmt, vet, staticcheck, functions that nothing reaches, rules on the structure of the code'
	@echo 'make unit          package tests'
	@echo 'make race          concurrent packages under the race detector'
	@echo 'make sim SEED=n    one seed of the simulator; SEEDS=n runs that many from SEED on; PLAN=... one plan that a failure has printed'
	@echo 'make crash         crash lane on a memory disk that forgets what was not synced'
	@echo 'make mutants       bugs injected on purpose, one at a time, and which lane finds each; ONLY=raftlog,mvcc/hash-leaves-out-newest; writes the table of docs/proof.md'
	@echo 'make fuzz          every fuzz target for FUZZTIME'
	@echo 'make cluster-test  real processes under kill -9 for FAULTS, history checked for linearizability'
	@echo 'make chaos         clusters of real processes, in part with real etcd 3.7, under several faults at once for MINUTES: kills, pauses, partitions, packet loss, clock jumps, full and slow disks; SEED=n'
	@echo 'make failure-test  bad input, damaged files, a full disk: messages, exit codes and what is left on disk'
	@echo 'make setup-test    members that join by one flag, killed at any step, on loopback and in network namespaces'
	@echo 'make handbook      the commands of docs/handbook, run on simulated hosts; output, log lines and metrics compared with the pages'
	@echo 'make moving        directories and snapshot files from real etcd 3.5, 3.6, 3.7 to Quorate and back, HashKV equal'
	@echo 'make secure        TLS: certificates and authorities replaced under load, rules, generated ones, ports, wrong files'
	@echo 'make hostile-test  a member under malformed frames, slow connections, huge requests and endless watches'
	@echo 'make h2            the HTTP/2 server under h2spec and gRPC'"'"'s interop cases, compared with grpc-go; clients of other stacks if compat/h2/clients/install has installed them'
	@echo 'make mixed         one cluster of our members and those of real etcd 3.7 and 3.6: replaced one by one under load and faults'
	@echo 'make mixed-long    the same with 3.5, with five members, and through all versions: some minutes'
	@echo 'make observe       metrics and HTTP pages of Quorate and real etcd 3.7.3, compared'
	@echo 'make monitoring    alerts and dashboard with a real Prometheus (built once, some minutes): tests of the rules, every series exists, alerts fire'
	@echo 'make kubernetes    a real kube-apiserver (built once, some minutes) on members as kubeadm sets them up, under faults; its own storage tests; manifests; COMPARE=1 with real etcd as well'
	@echo 'make tools         etcdctl 3.7, 3.5 and 3.4 against Quorate, our etcdctl against real etcd: output compared'
	@echo 'make auth-test     users, roles and tokens in a cluster of ours and real members'
	@echo 'make gateway       the API as JSON: answers of Quorate and real etcd 3.7.3, compared'
	@echo 'make v2            the v2 API: answers of Quorate and real etcd 3.5, compared; etcdctl with ETCDCTL_API=2'
	@echo 'make proxies       etcd gateway and etcd grpc-proxy: Quorate and real etcd 3.7.3, compared'
	@echo 'make differential  one script, and SEEDS=n lists of random operations from SEED on, against Quorate and real etcd, answers compared'
	@echo 'make bench         Quorate and real etcd 3.7.3 in turn; writes docs/performance.md'
	@echo 'make bench-groups BENCH=pinned,quota   some groups of its rows; the others keep their figures'
	@echo 'make bench-millions what 1 and 10 million keys need; MILLIONS=1,10,30'
	@echo 'make release       dist/: archives and packages of this commit; docs/RELEASE.md'
	@echo 'make release-test  a release built twice, compared byte by byte; packages installed over Debian'"'"'s, removed and purged in a sandbox'
	@echo 'make clean         remove bin/, dist/ and the data of make run'

build:
	$(GO) build -trimpath -o $(BIN)/ ./cmd/...

run: build
	@scripts/run-cluster

test: build check unit race sim crash fuzz differential gateway v2 proxies observe tools auth-test failure-test cluster-test chaos setup-test handbook secure hostile-test h2 mixed moving

# What joins the other lanes is short.
test: FAULTS = 30s
test: MINUTES = 1
# The packages of the race lane run once, with the race detector.
test: PACKAGES = $$($(GO) list ./... | grep -vxF "$$($(GO) list $(RACED))")

check:
	@out=$$(gofmt -l cmd internal compat bench release mutants); test -z "$$out" || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	@for module in . compat compat/h2 bench; do \
		(cd $$module && echo "staticcheck $$module" && $(GO) tool -modfile=$(CURDIR)/tools/go.mod staticcheck ./...) || exit 1; \
	done
	GO=$(GO) scripts/deadcode
	$(GO) test ./internal

PACKAGES = ./...
unit:
	$(GO) test $(PACKAGES)
	cd bench && $(GO) test ./...

RACED := ./internal/server/... ./internal/watch/... ./internal/lease/... ./internal/mvcc/... ./internal/raftlog/... \
	./internal/transport/... ./internal/h2/... ./internal/rpc/... ./internal/proposal/... ./internal/auth/... ./internal/password/... ./internal/readindex/... ./internal/listen/... ./internal/certs/... ./internal/legacy/... ./internal/proxy/...

race: export CGO_ENABLED = 1
race:
	$(GO) test -race $(RACED)
	cd bench && $(GO) test -race ./lean

sim: SEEDS = 60
sim:
	$(GO) -C internal/sim test -run 'TestSim$(if $(PLAN),Plan)' -timeout 0 -count=1 -args -seed=$(SEED) -seeds=$(SEEDS) -plan='$(PLAN)'

crash:
	$(GO) test ./internal/sim -run TestCrash -count=1 -args -seed=$(SEED) -seeds=$(SEEDS)

mutants:
	$(GO) run ./mutants -only '$(ONLY)'

fuzz:
	@GO=$(GO) scripts/fuzz $(FUZZTIME)

cluster-test: build
	cd compat && $(GO) test ./cluster -v -count=1 -timeout 10m -args -etcd=$(CURDIR)/$(BIN)/etcd -etcdctl=$(CURDIR)/$(BIN)/etcdctl -duration=$(FAULTS)

chaos: build $(ETCD37)
	cd compat && $(GO) test ./chaos -v -count=1 -timeout $$(($(MINUTES) * 2 + 20))m -args -etcd=$(CURDIR)/$(BIN)/etcd -real=$(CURDIR)/$(ETCD37) \
		-duration=$(MINUTES)m $(if $(filter command line environment,$(origin SEED)),-seed=$(SEED))

setup-test: build $(ETCD37) $(ETCD35)
	cd compat && $(GO) test ./setup -count=1 -timeout 10m -args -etcd=$(CURDIR)/$(BIN)/etcd -etcdctl=$(CURDIR)/$(BIN)/etcdctl -etcdutl=$(CURDIR)/$(BIN)/etcdutl

handbook: build
	cd compat && $(GO) test ./handbook -count=1 -timeout 10m -args -etcd=$(CURDIR)/$(BIN)/etcd -etcdctl=$(CURDIR)/$(BIN)/etcdctl -etcdutl=$(CURDIR)/$(BIN)/etcdutl

secure: build $(ETCD37)
	cd compat && $(GO) test ./secure -count=1 -timeout 10m -args -etcd=$(CURDIR)/$(BIN)/etcd -etcdctl=$(CURDIR)/$(BIN)/etcdctl

hostile-test: build
	cd compat && $(GO) test ./hostile -count=1 -timeout 10m -args -etcd=$(CURDIR)/$(BIN)/etcd

h2: build
	cd compat/h2 && $(GO) test . -count=1 -timeout 10m -args -etcd=$(CURDIR)/$(BIN)/etcd

failure-test: build $(ETCD37) $(ETCD35)
	cd compat && $(GO) test ./failure -count=1 -timeout 10m -parallel 4 -args -etcd=$(CURDIR)/$(BIN)/etcd

mixed: build $(ETCD37) $(ETCD36) $(ETCD35)
	cd compat && $(GO) test ./mixed -count=1 -timeout 10m -parallel 4 -args -etcd=$(CURDIR)/$(BIN)/etcd

mixed-long: build $(ETCD37) $(ETCD36) $(ETCD35)
	cd compat && $(GO) test ./mixed -v -count=1 -timeout 30m -args -long -etcd=$(CURDIR)/$(BIN)/etcd

moving: build $(ETCD37) $(ETCD36) $(ETCD35) $(REALTOOLS)
	cd compat && $(GO) test ./moving -count=1 -timeout 15m -parallel 4 -args -etcd=$(CURDIR)/$(BIN)/etcd -etcdctl=$(CURDIR)/$(BIN)/etcdctl -etcdutl=$(CURDIR)/$(BIN)/etcdutl

$(ETCD37) $(ETCD36) $(ETCD35) $(REALTOOLS):
	$(MAKE) -C compat bin/$(@F)

compat:
	$(MAKE) -C compat

observe: build $(ETCD37) $(REALTOOLS)
	cd compat && $(GO) test ./observe -count=1 -timeout 10m

monitoring: build $(PROMETHEUS)
	cd compat && $(GO) test ./monitoring -count=1 -timeout 10m

$(PROMETHEUS):
	$(MAKE) -C compat bin/$(@F)

kubernetes: build $(APISERVER) $(if $(COMPARE),$(ETCD37))
	cd compat/kubernetes && $(GO) test -trimpath . -count=1 -timeout 30m $(if $(COMPARE),-v) -args $(if $(COMPARE),-compare)
	cd compat/kubernetes/storage && ETCD_UNDER_TEST=$(CURDIR)/$(BIN)/etcd $(GO) test -trimpath -count=1 -timeout 20m \
		$(addprefix k8s.io/apiserver/pkg/storage/,etcd3 cacher storagebackend/factory)

$(APISERVER):
	$(MAKE) -C compat bin/$(@F)

auth-test: build $(ETCD37)
	cd compat && $(GO) test ./auth -count=1 -timeout 10m -args -etcd=$(CURDIR)/$(BIN)/etcd

gateway: build $(ETCD37)
	cd compat && $(GO) test ./gateway -count=1 -timeout 10m

proxies: build $(ETCD37) $(REALTOOLS)
	cd compat && $(GO) test ./proxies -count=1 -timeout 10m -args -etcd=$(CURDIR)/$(BIN)/etcd -etcdctl=$(CURDIR)/$(BIN)/etcdctl

v2: build $(ETCD35) $(ETCDCTL35)
	cd compat && $(GO) test ./v2 -count=1 -timeout 10m

differential: build $(ETCD37) $(ETCD36) $(ETCD35)
	cd compat && $(GO) test ./differential -count=1 -timeout 20m -args -seed=$(SEED) -seeds=$(SEEDS)

tools: build $(ETCD37) $(ETCD35) $(REALTOOLS) $(ETCDCTL35)
	cd compat && $(GO) test ./tools -count=1 -timeout 10m -args -etcd=$(CURDIR)/$(BIN)/etcd -etcdctl=$(CURDIR)/$(BIN)/etcdctl

$(ETCDCTL35):
	$(MAKE) -C compat bin/etcdctl35

bench: build $(ETCD37)
	cd bench && $(GO) run . -ours $(CURDIR)/$(BIN)/etcd -etcd $(CURDIR)/$(ETCD37) -scale full -out $(CURDIR)/docs/performance.md

bench-groups: build $(ETCD37)
	cd bench && $(GO) run . -ours $(CURDIR)/$(BIN)/etcd -etcd $(CURDIR)/$(ETCD37) -scale full -rows $(BENCH) -out $(CURDIR)/docs/performance.md

bench-millions: build
	cd bench && $(GO) run . -ours $(CURDIR)/$(BIN)/etcd -millions $(MILLIONS) -out $(CURDIR)/docs/performance.md

release:
	cd release && $(GO) run . -out $(CURDIR)/dist

release-test: $(ETCD35)
	cd release && $(GO) test . -count=1 -timeout 30m -args -etcd35=$(CURDIR)/$(ETCD35)

clean:
	rm -rf $(BIN) run dist
