package main

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
	"github.com/pilox/vault/internal/admin"
	"github.com/pilox/vault/internal/daemon"
)

// exported is what a real daemon left behind: bundles of a run that was open and
// then closed, of the whole ledger, and the keys of its ledger and of another one.
type exported struct {
	dir                 string
	open, closed, whole string // paths
	key, foreign        string
}

// export runs a daemon, has it refuse a few calls of one task, and exports.
func export(t *testing.T) exported {
	t.Helper()
	e := exported{dir: t.TempDir()}
	// The path of a socket is bounded, and the name of this test is not short.
	data, err := os.MkdirTemp("", "pv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(data); err != nil {
			t.Error(err)
		}
	})
	env := map[string]string{"PVAULT_DATA": data, "PVAULT_LISTEN_HTTP": "off", "HOME": e.dir}
	command := func(args ...string) string {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, strings.NewReader(""), &out, &errs, func(k string) string { return env[k] }); code != exitOK {
			t.Fatalf("pvault %v: exit %d\n%s%s", args, code, &out, &errs)
		}
		return out.String()
	}
	command("init", "--unprotected")
	conf, err := daemon.LoadConfig("", func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	conf.Sandbox.MinGrade = "none"
	d, err := daemon.Open(t.Context(), conf, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := d.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	task := filepath.Join(e.dir, "task.yaml")
	if err := os.WriteFile(task, []byte("version: 1\npurpose: Be refused\nprincipal: user:clerk@example.com\nlife: 1h\nbudgets: {calls: 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var minted admin.Task
	if err := json.Unmarshal([]byte(command("cap", "mint", "--task", task, "--json")), &minted); err != nil {
		t.Fatal(err)
	}
	client := admin.NewClient(conf.Socket())
	defer client.Close()
	for i := range 4 {
		a, err := client.Call(t.Context(), admin.CallRequest{Token: minted.Token, ID: fmt.Sprintf("c-%d", i), Kind: vault.KindTool, Name: "transfer", Args: json.RawMessage(`{}`)})
		if err != nil || a.Denial == nil || a.Denial.Event == nil {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	status, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e.key = status.LedgerKey
	// A key that nobody has signed with: the same name, another point.
	e.foreign = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
	e.open, e.closed, e.whole = filepath.Join(e.dir, "open.zip"), filepath.Join(e.dir, "closed.zip"), filepath.Join(e.dir, "whole.zip")
	command("audit", "export", "--run", string(minted.ID), "--disclose", "-o", e.open)
	command("cap", "close", string(minted.ID))
	command("audit", "export", "--run", string(minted.ID), "--disclose", "-o", e.closed)
	command("audit", "export", "--disclose", "-o", e.whole)
	return e
}

// TestAuditVerifyExitCodes: a script can tell from the exit code alone what is
// wrong with a bundle that a real daemon exported. Whoever changes a bundle here is
// thorough: the manifest and the zip around the records fit again afterwards.
func TestAuditVerifyExitCodes(t *testing.T) {
	e := export(t)
	key := []string{"--key", e.key}
	leaves := func(change func(l []string) []string) func(*testing.T, map[string][]byte) {
		return func(t *testing.T, files map[string][]byte) {
			t.Helper()
			l := strings.SplitAfter(strings.TrimSuffix(string(files["leaves.jsonl"]), "\n"), "\n")
			l[len(l)-1] += "\n"
			files["leaves.jsonl"] = []byte(strings.Join(change(l), ""))
		}
	}
	altered := leaves(func(l []string) []string {
		l[2] = strings.Replace(l[2], `"capability.target"`, `"capability.budget"`, 1)
		return l
	})
	dropped := leaves(func(l []string) []string { return slices.Delete(l, 2, 3) })
	swapped := leaves(func(l []string) []string {
		l[2], l[3] = l[3], l[2]
		return l
	})
	truncated := leaves(func(l []string) []string { return l[:len(l)-2] })
	disclosed := func(t *testing.T, files map[string][]byte) {
		t.Helper()
		d := files["disclosures.jsonl"]
		i := bytes.Index(d, []byte(`"value":"`)) + len(`"value":"`)
		d[i] ^= 1
	}
	seen := map[int]string{}
	for _, tt := range []struct {
		name   string
		bundle string
		change func(*testing.T, map[string][]byte)
		args   []string
		want   int
		shared bool // the exit code is that of an earlier row
	}{
		{"an intact run that is over", e.closed, nil, key, evidence.ExitOK, false},
		{"an intact ledger", e.whole, nil, key, evidence.ExitOK, true},
		{"a record altered", e.closed, altered, key, evidence.ExitAltered, false},
		{"a record of the ledger altered", e.whole, leaves(func(l []string) []string {
			l[1] = strings.Replace(l[1], `"allow"`, `"deny"`, 1)
			return l
		}), key, evidence.ExitAltered, true},
		{"a record dropped", e.closed, dropped, key, evidence.ExitDropped, false},
		{"two records swapped", e.closed, swapped, key, evidence.ExitSwapped, false},
		{"the end cut off", e.closed, truncated, key, evidence.ExitTruncated, false},
		{"a disclosed value changed", e.closed, disclosed, key, evidence.ExitDisclosure, false},
		{"another ledger's key", e.closed, nil, []string{"--key", e.foreign}, evidence.ExitWrongKey, false},
		{"no key", e.closed, nil, nil, evidence.ExitUnpinned, false},
		{"a run that is still open", e.open, nil, key, evidence.ExitIncomplete, false},
		{"another run", e.closed, nil, append([]string{"--run", "t-0"}, key...), evidence.ExitOtherRun, false},
		{"not a bundle", filepath.Join(e.dir, "task.yaml"), nil, key, evidence.ExitMalformed, false},
		{"not a file", filepath.Join(e.dir, "none.zip"), nil, key, exitError, false},
		{"no bundle named", "", nil, key, exitUsage, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := tt.bundle
			if tt.change != nil {
				path = filepath.Join(t.TempDir(), "changed.zip")
				repack(t, tt.bundle, path, tt.change)
			}
			args := append([]string{"audit", "verify"}, tt.args...)
			if path != "" {
				args = append(args, path)
			}
			var out, errs bytes.Buffer
			code := run(t.Context(), args, strings.NewReader(""), &out, &errs, func(string) string { return "" })
			if code != tt.want {
				t.Errorf("exit %d, want %d\n%s%s", code, tt.want, &out, &errs)
			}
			if out.Len()+errs.Len() == 0 {
				t.Error("nothing was said")
			}
			if tt.shared {
				return
			}
			if before, ok := seen[code]; ok {
				t.Errorf("%q and %q have the same exit code %d", tt.name, before, code)
			}
			seen[code] = tt.name
		})
	}
}

// repack changes the files of a bundle and writes another in which everything that
// needs no key fits again: counts, sizes and digests in the manifest, the zip.
func repack(t *testing.T, from, to string, change func(*testing.T, map[string][]byte)) {
	t.Helper()
	in, err := zip.OpenReader(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	files := map[string][]byte{}
	for _, f := range in.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if files[f.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
	}
	before := bytes.Clone(bytes.Join([][]byte{files["leaves.jsonl"], files["disclosures.jsonl"]}, nil))
	change(t, files)
	if bytes.Equal(before, bytes.Join([][]byte{files["leaves.jsonl"], files["disclosures.jsonl"]}, nil)) {
		t.Fatal("nothing was changed, so this shows nothing")
	}
	var m evidence.Manifest
	if err := json.Unmarshal(files["manifest.json"], &m); err != nil {
		t.Fatal(err)
	}
	for i := range m.Files {
		b := files[m.Files[i].Name]
		m.Files[i].Size = int64(len(b))
		m.Files[i].SHA256 = sha256.Sum256(b)
	}
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(m); err != nil {
		t.Fatal(err)
	}
	files["manifest.json"] = text.Bytes()

	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, f := range in.File {
		b := files[f.Name]
		h := f.FileHeader
		h.CRC32 = crc32.ChecksumIEEE(b)
		h.UncompressedSize64, h.CompressedSize64 = uint64(len(b)), uint64(len(b))
		p, err := w.CreateRaw(&h)
		if err == nil {
			_, err = p.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}
