package sink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/vaulttest"
)

// everyEvent yields a view of each sort of event that there is, and of those that
// there could be: all classes in all phases with all kinds and verdicts.
func everyEvent() (out []View) {
	phases := []vault.Phase{
		vault.PhaseRefused, vault.PhaseAsked, vault.PhaseIntent, vault.PhaseReleased, vault.PhaseDone, vault.PhaseFailed,
		vault.PhaseCancelled, vault.PhaseUnknown, vault.PhaseOpened, vault.PhaseClosed, vault.PhaseNoted,
	}
	kinds := []vault.Kind{
		"", vault.KindTool, vault.KindResource, vault.KindPrompt, vault.KindServerRequest, vault.KindEgress,
		vault.KindSecret, vault.KindFile, vault.KindExec, vault.KindModel, vault.KindAgent,
	}
	reasons := []vault.Code{"", vault.CodeCapabilityTarget, vault.CodeFlowDeadlyThree, vault.CodeScan, vault.CodeToolQuarantined}
	for _, class := range classes {
		for _, phase := range phases {
			for _, kind := range kinds {
				for _, reason := range reasons {
					for _, verdict := range []vault.Verdict{vault.Deny, vault.Ask, vault.Allow} {
						for _, full := range []bool{false, true} {
							l := &evidence.Leaf{Log: origin, Index: 7, Time: time.Date(2026, 11, 28, 8, 0, 0, 0, time.UTC), Class: class, Phase: phase, Kind: kind, Reason: reason, Verdict: verdict}
							if full {
								l.Run, l.Call, l.Tool, l.Server, l.Policy, l.Grade = "t-1", "c-1", "say", vault.ServerID{1}, vault.Digest{2}, vault.GradeB
							}
							e := event(l)
							v := View{Leaf: e.Leaf, Raw: e.Raw, Hash: e.Hash}
							if full {
								sel := newFields([]string{"args"}, OCSF, new(evidence.Salt))
								v = sel.view(&e)
							}
							out = append(out, v)
						}
					}
				}
			}
		}
	}
	return out
}

// TestOCSFIsValid holds events against OCSF's own schema, version 1.8.0: required
// and known attributes, types and enumerations, in the profiles that an event names.
func TestOCSFIsValid(t *testing.T) {
	if !vaulttest.Required("ocsf") {
		vaulttest.Missing(t, "ocsf", "the OCSF schema comes from PyPI")
	}
	lib := installOCSF(t)
	byKey := map[string][][]byte{}
	for _, v := range everyEvent() {
		e := ocsf(&v)
		if e.ClassUID == 0 || e.Metadata.Version != "1.8.0" {
			t.Fatalf("%s has no class", v.Raw)
		}
		b, err := OCSF.Append(nil, &v)
		if err != nil {
			t.Fatal(err)
		}
		profiles := slices.Sorted(slices.Values(e.Metadata.Profiles))
		key := fmt.Sprintf("%d %s", e.ClassUID, strings.Join(profiles, ","))
		byKey[key] = append(byKey[key], b)
	}
	var keys []string
	for key := range byKey {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	cmd := exec.CommandContext(t.Context(), "python3", append([]string{filepath.Join("testdata", "ocsf", "schemas.py")}, keys...)...)
	cmd.Env = append(os.Environ(), "PYTHONPATH="+lib)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var schemas map[string]any
	if schemas, err = decodeSchemas(out); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		t.Run(key, func(t *testing.T) {
			c := jsonschema.NewCompiler()
			if err := c.AddResource("https://schema.test/"+key, schemas[key]); err != nil {
				t.Fatal(err)
			}
			schema, err := c.Compile("https://schema.test/" + key)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range byKey[key] {
				doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
				if err != nil {
					t.Fatal(err)
				}
				if err := schema.Validate(doc); err != nil {
					t.Fatalf("%s\n%v", b, err)
				}
			}
			// The judge has teeth: an attribute more, and one less, are seen.
			for name, change := range map[string]func(map[string]any){
				"an unknown attribute":      func(e map[string]any) { e["bogus"] = 1 },
				"no severity":               func(e map[string]any) { delete(e, "severity_id") },
				"an activity that is none":  func(e map[string]any) { e["activity_id"] = 77 },
				"a time that is no integer": func(e map[string]any) { e["time"] = "now" },
			} {
				var e map[string]any
				if err := json.Unmarshal(byKey[key][0], &e); err != nil {
					t.Fatal(err)
				}
				change(e)
				if schema.Validate(e) == nil {
					t.Errorf("%s passes", name)
				}
			}
		})
	}
}

func decodeSchemas(out []byte) (map[string]any, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(out))
	if err != nil {
		return nil, err
	}
	m, ok := doc.(map[string]any)
	if !ok {
		return nil, errors.New("no object")
	}
	return m, nil
}

// installOCSF installs the schema below the user's cache directory and returns where.
func installOCSF(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "pvault-test", "ocsf-1.2.0")
	export := filepath.Join("ocsf_json_schema", "ocsf", "1.8.0.json")
	if _, err := os.Stat(filepath.Join(dir, export)); err == nil {
		return dir
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "install-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(t.Context(), "python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes",
		"--target", tmp, "-r", filepath.Join("testdata", "ocsf", "requirements.txt"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Rename(tmp, dir); err != nil {
		t.Log(err) // another test binary was quicker
	}
	if _, err := os.Stat(filepath.Join(dir, export)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestOCSFMapping says which class and activity an event becomes, and what was done
// about it.
func TestOCSFMapping(t *testing.T) {
	for _, tt := range []struct {
		name        string
		leaf        evidence.Leaf
		class, act  int
		action      int
		disposition int
		status      int
	}{
		{"a call that may run", evidence.Leaf{Class: vault.ClassCall, Phase: vault.PhaseIntent, Kind: vault.KindTool, Verdict: vault.Allow}, 6003, 99, 1, 1, 0},
		{"a resource that was read", evidence.Leaf{Class: vault.ClassCall, Phase: vault.PhaseDone, Kind: vault.KindResource, Verdict: vault.Allow}, 6003, 2, 1, 1, 1},
		{"a call that may not", evidence.Leaf{Class: vault.ClassCall, Phase: vault.PhaseRefused, Kind: vault.KindTool, Reason: vault.CodeCapabilityTarget}, 6003, 99, 2, 2, 2},
		{"a call that private and untrusted data led to", evidence.Leaf{Class: vault.ClassCall, Phase: vault.PhaseRefused, Kind: vault.KindTool, Reason: vault.CodeFlowDeadlyThree}, 2004, 1, 2, 2, 1},
		{"content that a scanner found", evidence.Leaf{Class: vault.ClassCall, Phase: vault.PhaseRefused, Kind: vault.KindTool, Reason: vault.CodeScan}, 2004, 1, 2, 2, 1},
		{"a result that was withheld", evidence.Leaf{Class: vault.ClassCall, Phase: vault.PhaseDone, Kind: vault.KindTool, Reason: vault.CodeScan, Verdict: vault.Allow}, 6003, 99, 1, 3, 1},
		{"a call that waits for a person", evidence.Leaf{Class: vault.ClassCall, Phase: vault.PhaseAsked, Kind: vault.KindTool, Reason: vault.CodeApprovalRequired, Verdict: vault.Ask}, 6003, 99, 99, 14, 0},
		{"a call whose end is not known", evidence.Leaf{Class: vault.ClassCall, Phase: vault.PhaseUnknown, Kind: vault.KindTool, Verdict: vault.Allow}, 6003, 99, 1, 1, 0},
		{"a program in a sandbox", evidence.Leaf{Class: vault.ClassCall, Phase: vault.PhaseNoted, Kind: vault.KindExec, Verdict: vault.Allow}, 1007, 99, 1, 1, 0},
		{"a task opened", evidence.Leaf{Class: vault.ClassTask, Phase: vault.PhaseOpened, Verdict: vault.Allow}, 3005, 1, 1, 1, 1},
		{"a task closed", evidence.Leaf{Class: vault.ClassTask, Phase: vault.PhaseClosed, Verdict: vault.Allow}, 3005, 2, 1, 24, 1},
		{"autonomy lowered", evidence.Leaf{Class: vault.ClassTask, Phase: vault.PhaseNoted}, 3005, 2, 2, 24, 1},
		{"a yes of a person", evidence.Leaf{Class: vault.ClassApproval, Phase: vault.PhaseNoted, Verdict: vault.Allow}, 3005, 1, 1, 8, 1},
		{"a no of a person", evidence.Leaf{Class: vault.ClassApproval, Phase: vault.PhaseNoted}, 3005, 99, 2, 2, 1},
		{"a revocation", evidence.Leaf{Class: vault.ClassRevocation, Phase: vault.PhaseNoted}, 3005, 2, 2, 24, 1},
		{"a server registered", evidence.Leaf{Class: vault.ClassServer, Phase: vault.PhaseNoted, Verdict: vault.Allow}, 3004, 3, 0, 0, 1},
		{"a definition that changed", evidence.Leaf{Class: vault.ClassServer, Phase: vault.PhaseNoted, Reason: vault.CodeToolQuarantined}, 2004, 1, 2, 3, 1},
		{"the daemon starts", evidence.Leaf{Class: vault.ClassDaemon, Phase: vault.PhaseOpened, Verdict: vault.Allow}, 6002, 3, 0, 0, 1},
		{"a policy reloaded", evidence.Leaf{Class: vault.ClassDaemon, Phase: vault.PhaseNoted, Verdict: vault.Allow}, 3004, 3, 0, 0, 1},
		{"a field erased", evidence.Leaf{Class: vault.ClassErasure, Phase: vault.PhaseClosed, Verdict: vault.Allow}, 1008, 2, 0, 0, 1},
		{"a ledger that follows another", evidence.Leaf{Class: vault.ClassRecovery, Phase: vault.PhaseOpened, Verdict: vault.Allow}, 1008, 6, 0, 0, 1},
		{"strangers", evidence.Leaf{Class: vault.ClassAccess, Phase: vault.PhaseNoted, Reason: vault.CodeProof}, 6003, 99, 2, 2, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.leaf.Log, tt.leaf.Time = origin, time.Unix(1, 0)
			ev := event(&tt.leaf)
			e := ocsf(&View{Leaf: ev.Leaf, Raw: ev.Raw, Hash: ev.Hash})
			action := 0
			if e.ActionID != nil {
				action = *e.ActionID
			}
			if e.ClassUID != tt.class || e.ActivityID != tt.act || action != tt.action || e.DispositionID != tt.disposition || e.StatusID != tt.status {
				t.Errorf("class %d, activity %d, action %d, disposition %d, status %d", e.ClassUID, e.ActivityID, action, e.DispositionID, e.StatusID)
			}
			if e.TypeUID != e.ClassUID*100+e.ActivityID || e.CategoryUID != e.ClassUID/1000 {
				t.Errorf("type %d, category %d", e.TypeUID, e.CategoryUID)
			}
		})
	}
}
