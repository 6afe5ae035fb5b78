package daemon_test

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/policy"
	catalogue "github.com/pilox/vault/internal/tool"
)

// hogVariable makes the test binary a process that uses a CPU and nothing else.
const hogVariable = "PVAULT_TEST_HOG"

// hog runs until its standard input ends, which it does with whoever started it.
func hog() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for began := time.Now(); time.Since(began) < 2*time.Hour; {
		for range 1 << 24 {
		}
	}
}

// startHogs starts n processes that want a CPU all the time, until the test ends, and
// returns a function that counts those that have one or wait for one.
func startHogs(t *testing.T, n int) (runnable func() int) {
	t.Helper()
	var pids []int
	for range n {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), hogVariable+"=1", "GOMAXPROCS=1")
		in, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = in.Close()
			_ = cmd.Wait() // killed with the test's context, or ended with its input
		})
		pids = append(pids, cmd.Process.Pid)
	}
	return func() (n int) {
		for _, pid := range pids {
			threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
			if err != nil {
				t.Error(err)
			}
			for _, path := range threads {
				b, err := os.ReadFile(path)
				if err != nil {
					continue // the thread has ended
				}
				// The name in parentheses may hold anything; the state follows it.
				if _, rest, _ := strings.Cut(string(b), ") "); strings.HasPrefix(rest, "R") {
					n++
					break
				}
			}
		}
		return n
	}
}

// A starved agent makes tokens that are all valid, and calls.
type starved struct {
	verifier *capability.Verifier
	issuer   capability.Signer
	holders  [2]ed25519.PrivateKey
	target   vault.Target
}

func newStarved(t *testing.T) *starved {
	t.Helper()
	s := &starved{target: vault.Target{Server: vault.ServerID{1}, Name: "pay"}}
	keys := make([]ed25519.PrivateKey, 3)
	for i := range keys {
		var err error
		if _, keys[i], err = ed25519.GenerateKey(nil); err != nil {
			t.Fatal(err)
		}
	}
	s.issuer, s.holders = capability.Signer{Key: keys[0], KID: "k1"}, [2]ed25519.PrivateKey(keys[1:])
	root, err := capability.KeyOf(keys[0].Public())
	if err != nil {
		t.Fatal(err)
	}
	s.verifier, err = capability.New(capability.Config{
		Roots: []capability.RootIssuer{{KID: "k1", Key: root, Tenant: "default", Own: true}}, Audience: "cluster",
		Engines: &capability.Engines{Caveat: policy.CompileCaveat, Value: policy.CompileValue, Schema: catalogue.CompileValue},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// token makes a chain of two links that nobody has seen. One of eight has expressions,
// which take most of the time.
func (s *starved) token(n int) (capability.Chain, error) {
	var held [2]*capability.Holder
	for i, key := range s.holders {
		public, err := capability.KeyOf(key.Public())
		if err != nil {
			return capability.Chain{}, err
		}
		held[i] = capability.HeldBy(public)
	}
	now, expr, schema, pattern := time.Now(), `this.startsWith("EU")`, `{"maxLength":20,"type":"string"}`, `[A-Z]{2}[0-9]+`
	amount := capability.Constraint{Decimal: &capability.DecimalRange{Min: 0, Max: 9_000_000_000}}
	args, caveats := capability.Args{
		"/iban": capability.One(capability.Constraint{Regex: &pattern}),
		"/note": capability.One(capability.Constraint{MaxLength: capability.Limit(20)}),
		"/n":    capability.One(amount),
	}, []string(nil)
	if n%8 == 0 {
		args["/iban"] = capability.One(capability.Constraint{Regex: &pattern}, capability.Constraint{CEL: &expr})
		args["/note"] = capability.One(capability.Constraint{Schema: &schema})
		caveats = []string{`args.n < 100.0 && call.tool == "pay"`}
	}
	root, err := capability.Mint(capability.Link{
		Tenant: "default", Principal: "user:clerk@example.com", Agent: "spiffe://vault.internal/agent/default/clerk/1",
		Task: &capability.Task{ID: vault.TaskID(fmt.Sprintf("t-%d", n)), Purpose: "starve"}, Audience: "cluster",
		Issued: capability.InstantOf(now), NotBefore: capability.InstantOf(now), Expires: capability.InstantOf(now.Add(time.Hour)),
		Depth: capability.Depth(1), Holder: held[0], Budgets: &capability.Budgets{Calls: capability.Limit(10)},
		Grants: capability.Grants{vault.KindTool: {s.target: {Args: args}}}, Caveats: caveats,
	}, s.issuer)
	if err != nil {
		return capability.Chain{}, err
	}
	return capability.Attenuate(root, capability.Link{Holder: held[1], Budgets: &capability.Budgets{Calls: capability.Limit(2)}}, capability.Signer{Key: s.holders[0]})
}

// call makes a token and one call with it, proven by signature, or one of 32 in a
// session, of which a verifier keeps 4,096 for 15 minutes.
func (s *starved) call(t *testing.T, n int) error {
	chain, err := s.token(n)
	if err != nil {
		return err
	}
	call := &vault.Call{ID: fmt.Sprintf("c-%d", n), Kind: vault.KindTool, Target: s.target, Args: vault.MustArgs(`{"iban":"EU42","n":9.5,"note":"for chairs"}`)}
	if n%32 != 0 {
		nonce, err := s.verifier.Nonce()
		if err == nil {
			err = capability.SignCall(call, chain, s.holders[1], nonce)
		}
		if err != nil {
			return err
		}
	} else {
		session := &capability.Session{Chain: chain, Key: s.holders[1], Gateway: s.verifier.SessionKey()}
		request, err := session.Open()
		if err != nil {
			return err
		}
		answer, err := s.verifier.OpenSession(t.Context(), request, vault.Binding{})
		if err == nil {
			err = errors.Join(session.Finish(answer), session.Sign(call))
		}
		if err != nil {
			return err
		}
	}
	_, err = s.verifier.Verify(t.Context(), call)
	return err
}

// TestStarvedCallsAreNotDenied: no valid token is refused because the machine has
// something else to do. The long run makes 100,000 tokens and as many calls while at
// least 20 processes want a CPU all the time.
func TestStarvedCallsAreNotDenied(t *testing.T) {
	tokens, hogs, least := 400, 8, 6
	if os.Getenv("PVAULT_LONG") != "" {
		tokens, hogs, least = 100_000, 26, 20
	}
	s := newStarved(t)
	runnable := startHogs(t, hogs)
	eventually(t, "the hogs run", func() bool { return runnable() >= least })

	var next, denied atomic.Int64
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for n := int(next.Add(1)); n <= tokens; n = int(next.Add(1)) {
				if err := s.call(t, n); err != nil {
					denied.Add(1)
					t.Errorf("call %d: %v: %v", n, err, vault.DenialOf(err).Err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { workers.Wait(); close(done) }()
	samples, fewest, sum := 0, hogs, 0
	for busy := true; busy; {
		n := runnable()
		samples, fewest, sum = samples+1, min(fewest, n), sum+n
		select {
		case <-done:
			busy = false
		case <-time.After(100 * time.Millisecond):
		}
	}
	b, _ := os.ReadFile("/proc/loadavg")
	t.Logf("%d tokens, %d denied; of %d hogs %d to %d were runnable in %d samples, %d on average; load %s", tokens, denied.Load(), hogs, fewest, hogs, samples, sum/samples, b)
	if fewest < least {
		t.Errorf("at one time %d processes wanted a CPU, so this shows nothing: want %d", fewest, least)
	}
}
