//go:build js && wasm

// Command verify-page is the evidence verifier in a browser: the package evidence
// compiled to WebAssembly behind one function, vaultVerify(bytes, options), which
// returns the report as JSON. See build for the page around it.
package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"syscall/js"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// options are what the form says. Everything is text; lists are split at spaces, and
// keys in PEM after their last line.
type options struct {
	Keys, Since, Run, Newer, Policy, Rekor, TSA string
}

// An answer is what the page shows: a report, or an error about the form.
type answer struct {
	Report *evidence.Report `json:"report,omitempty"`
	Text   string           `json:"text,omitempty"`
	Error  string           `json:"error,omitempty"`
}

func main() {
	js.Global().Set("vaultVerify", js.FuncOf(func(_ js.Value, args []js.Value) any {
		bundle := make([]byte, args[0].Get("length").Int())
		js.CopyBytesToGo(bundle, args[0])
		a, err := verify(bundle, args[1].String())
		if err != nil {
			a.Error = err.Error()
		}
		b, err := json.Marshal(a)
		if err != nil {
			return `{"error":"encode report"}`
		}
		return string(b)
	}))
	select {} // the page calls for as long as it is open
}

func verify(bundle []byte, form string) (answer, error) {
	var f options
	if err := json.Unmarshal([]byte(form), &f); err != nil {
		return answer{}, fmt.Errorf("read form: %w", err)
	}
	o := evidence.Options{Keys: strings.Fields(f.Keys), RekorKeys: rekorKeys(f.Rekor), Run: vault.TaskID(strings.TrimSpace(f.Run))}
	if strings.TrimSpace(f.Since) != "" {
		// A pasted checkpoint may have lost the end of its last line.
		o.Since = []byte(strings.TrimRight(f.Since, "\r\n ") + "\n")
	}
	if strings.TrimSpace(f.Policy) != "" {
		o.Policy = []byte(f.Policy)
	}
	if strings.TrimSpace(f.TSA) != "" {
		o.TSARoots = []byte(f.TSA)
	}
	if newer := strings.TrimSpace(f.Newer); newer != "" {
		var err error
		if o.NewerThanSize, err = strconv.ParseUint(newer, 10, 64); err != nil {
			if o.NewerThan, err = time.Parse(time.RFC3339, newer); err != nil {
				return answer{}, fmt.Errorf("newer than %q: want a time like 2026-11-27T18:00:00Z or a number of records", newer)
			}
		}
	}
	r, err := evidence.VerifyBytes(bundle, o)
	if err != nil {
		return answer{}, err
	}
	return answer{Report: &r, Text: r.String()}, nil
}

// rekorKeys splits a list of keys of v2 in one word and of v1 in PEM.
func rekorKeys(text string) (keys []string) {
	for text != "" {
		words, rest, _ := strings.Cut(text, "-----BEGIN")
		keys = append(keys, strings.Fields(words)...)
		if text = rest; rest == "" {
			break
		}
		block, rest, _ := strings.Cut(rest, "-----END PUBLIC KEY-----")
		keys, text = append(keys, "-----BEGIN"+block+"-----END PUBLIC KEY-----\n"), rest
	}
	return keys
}
