package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pilox/vault/internal/daemon"
	"github.com/pilox/vault/internal/vaulttest"
)

// TestMain makes this test binary the pvault of the scripts, sandbox children
// included.
func TestMain(m *testing.M) {
	daemon.MaybeChild()
	testscript.Main(m, map[string]func(){"pvault": main})
}

// TestScript runs each file of testdata/script as a session at a shell.
//
// Each has a data directory of its own, and ./desk to register as a server (see
// testdata/echo). Beside the commands of package testscript there are
//
//	waitfor PATTERN COMMAND...   repeat COMMAND until its output matches
//	capture NAME PATTERN         set $NAME to the first group of PATTERN in the
//	                             output of the last command
//	exits CODE COMMAND...        run COMMAND and want that exit code
//	keypair NAME                 write NAME.key and NAME.pub
//	tarball FILE DIR             write the files of DIR into a tar.gz archive
//	authority NAME               start a time-stamp authority: its URL is $NAME, its root
//	                             in NAME.pem
func TestScript(t *testing.T) {
	server := buildEcho(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Deadline:            time.Now().Add(wholeTest),
		Setup: func(e *testscript.Env) error {
			e.Setenv("XDG_DATA_HOME", filepath.Join(e.WorkDir, "data"))
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			e.Setenv("PVAULT_LISTEN_HTTP", "127.0.0.1:0")
			e.Setenv("PVAULT_LOG_LEVEL", "error")
			return giveServer(server, filepath.Join(e.WorkDir, "desk"))
		},
		Condition: condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"waitfor": waitFor,
			"capture": capture,
			"exits":   exits,
			"keypair": keyPair,
			"tarball": tarball,
			"authority": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 1 {
					ts.Fatalf("usage: authority NAME")
				}
				a, s := vaulttest.NewTSA(t, args[0]+".test")
				ts.Setenv(args[0], s.URL+"/tsr")
				ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pem"), a.Roots(), 0o600))
			},
		},
	})
}

// buildEcho builds the server of the scripts once. It is static, because a jail
// has no libraries to load.
func buildEcho(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "echo")
	c := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./testdata/echo")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build the server of the scripts: %v\n%s", err, out)
	}
	return bin
}

// keyPair writes NAME.key and NAME.pub, an ECDSA pair on P-256 in PEM.
func keyPair(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: keypair NAME")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o600))
}

// tarball packs a directory as opa build names its files.
func tarball(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: tarball FILE DIR")
	}
	var out bytes.Buffer
	gz := gzip.NewWriter(&out)
	tw := tar.NewWriter(gz)
	root := ts.MkAbs(args[1])
	ts.Check(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := "/" + filepath.ToSlash(strings.TrimPrefix(path, root+string(filepath.Separator)))
		err = tw.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Typeflag: tar.TypeReg, Size: int64(len(b))})
		_, err2 := tw.Write(b)
		return errors.Join(err, err2)
	}))
	ts.Check(errors.Join(tw.Close(), gz.Close()))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), out.Bytes(), 0o600))
}

// giveServer makes dir a directory that pvault server add can install from.
func giveServer(bin, dir string) error {
	b, err := os.ReadFile(bin)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "echo"), b, 0o755)
}

// condition knows [sandbox]: a jail of grade B works here. Where PVAULT_REQUIRE
// says that it must, a script that would be skipped runs and fails.
func condition(name string) (bool, error) {
	if name != "sandbox" {
		return false, fmt.Errorf("unknown condition %q", name)
	}
	if strings.Contains(os.Getenv("PVAULT_REQUIRE"), "sandbox") {
		return true, nil
	}
	raw, err := daemon.Doctor(context.Background()) // testscript hands a condition no context
	return err == nil && strings.Contains(string(raw), `"grade":"B"`), nil
}

// wholeTest bounds all scripts together: a command that should have refused and
// runs instead must not eat the time of every other test.
const wholeTest = 12 * time.Minute

// patience is how long a script waits for something to happen before it fails.
const patience = time.Minute

func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: waitfor PATTERN COMMAND...")
	}
	want := compile(ts, args[0])
	deadline := time.After(patience)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		_ = ts.Exec(args[1], args[2:]...) // it may well fail until it succeeds
		if want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-deadline:
			ts.Fatalf("%q did not print %q within %v:\n%s%s", args[1:], args[0], patience, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
		case <-again.C:
		}
	}
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: capture NAME PATTERN")
	}
	m := compile(ts, args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) < 2 {
		ts.Fatalf("no %q in the output", args[1])
	}
	ts.Setenv(args[0], m[1])
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%q: %v", args[1:], err)
		}
		got = e.ExitCode()
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("%q ended with exit code %d, want %s", args[1:], got, args[0])
	}
}

func compile(ts *testscript.TestScript, pattern string) *regexp.Regexp {
	re, err := regexp.Compile("(?m)" + pattern)
	ts.Check(err)
	return re
}
