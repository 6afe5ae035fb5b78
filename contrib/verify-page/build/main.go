// Command build makes the verifier's page: one HTML file with the program inside,
// which fetches nothing and runs from a disk. Its content security policy names the
// digest of each script and style, and allows no connection at all.
//
//	go run ./contrib/verify-page/build -o dist/verify
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	dir := flag.String("C", "contrib/verify-page", "directory of the page's sources")
	out := flag.String("o", "dist/verify", "directory to write")
	flag.Parse()
	if err := build(context.Background(), os.Stdout, *dir, *out); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, log io.Writer, dir, out string) (err error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	temp, err := os.MkdirTemp("", "verify-page")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	program := filepath.Join(temp, "verify.wasm")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", program, ".")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	cmd.Env = append(os.Environ(), "GOOS=js", "GOARCH=wasm")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("compile: %w", err)
	}
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("find GOROOT: %w", err)
	}
	var packed string
	var text [4][]byte
	for i, name := range []string{
		filepath.Join(strings.TrimSpace(string(root)), "lib", "wasm", "wasm_exec.js"),
		filepath.Join(dir, "page.html"), filepath.Join(dir, "page.css"), filepath.Join(dir, "page.js"),
	} {
		if text[i], err = os.ReadFile(name); err != nil {
			return err
		}
	}
	if packed, err = pack(program); err != nil {
		return err
	}
	host, page, style := string(text[0]), string(text[1]), string(text[2])
	script := host + "\n" + string(text[3])
	policy := "default-src 'none'; base-uri 'none'; form-action 'none'; style-src " + digest(style) +
		"; script-src " + digest(script) + " 'wasm-unsafe-eval'"
	page = strings.NewReplacer("{{policy}}", policy, "{{style}}", style, "{{script}}", script, "{{program}}", packed).Replace(page)
	name := filepath.Join(out, "index.html")
	if err := os.WriteFile(name, []byte(page), 0o644); err != nil {
		return err
	}
	_, err = fmt.Fprintf(log, "wrote %s, %d bytes, SHA-256 %x\n", name, len(page), sha256.Sum256([]byte(page)))
	return err
}

// pack returns the program, compressed, as text that HTML leaves alone.
func pack(name string) (string, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return "", err
	}
	if _, err := w.Write(raw); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(b.Bytes()), nil
}

// digest is the source expression of an inline script or style.
func digest(s string) string {
	h := sha256.Sum256([]byte(s))
	return "'sha256-" + base64.StdEncoding.EncodeToString(h[:]) + "'"
}
