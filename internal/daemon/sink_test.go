package daemon

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pilox/vault"
	"github.com/pilox/vault/evidence"
)

// TestTailFormats: an event in the form of another system is one line, holds the
// exact leaf, and a tool, call or ledger with a hostile name changes nothing about it.
func TestTailFormats(t *testing.T) {
	header := regexp.MustCompile(`^<(108|110)>1 2026-11-27T20:00:00.000001Z [!-~]{1,255} pvault - [a-z]+\.[a-z]+ - \{`)
	for _, tt := range []struct {
		name, log, tool, call string
		verdict               vault.Verdict
		priority              string
	}{
		{"a plain call", "vault.internal/default/1", "read", "c-1", vault.Allow, "<110>"},
		{"a call that was refused", "vault.internal/default/1", "read", "c-1", vault.Deny, "<108>"},
		{"a tool that ends the line", "vault.internal/1", "x\n<14>1 - forged su - - - root", "c\r\n\x00", vault.Allow, "<110>"},
		{"a tool that closes the JSON", "vault.internal/1", `"},"id":"9","data":{"`, "\u2028\u0085", vault.Allow, "<110>"},
		{"a ledger with spaces", "a b\n c/" + strings.Repeat("é", 300), "x", "c", vault.Allow, "<110>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := evidence.Leaf{
				Log: tt.log, Index: 7, Epoch: 1, Time: time.Date(2026, 11, 27, 20, 0, 0, 1000, time.UTC), Run: "t-1", Call: tt.call,
				Class: vault.ClassCall, Phase: vault.PhaseIntent, Verdict: tt.verdict, Kind: vault.KindTool, Tool: tt.tool,
			}
			l.Fields = evidence.Fields{N: len(vault.FieldsOf(l.Class)), Root: vault.Digest{1}}
			leaf, err := l.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			raw := fmt.Appendf(nil, `{"leaf":%s,"hash":"%v","fields":{"args":"a secret"}}`, leaf, evidence.HashLeaf(leaf))
			for _, name := range EventForms {
				b, err := FormatEvent(name, raw)
				if err != nil {
					t.Fatal(err)
				}
				line := string(b)
				if strings.ContainsAny(line, "\n\r") || strings.Contains(line, "a secret") {
					t.Fatalf("%s: %q", name, line)
				}
				var got []byte
				switch name {
				case "syslog":
					if !header.MatchString(line) || !strings.HasPrefix(line, tt.priority) {
						t.Fatalf("syslog header of %q", line)
					}
					got = []byte(line[strings.Index(line, " - {")+3:])
				case "ocsf":
					var e struct {
						ClassUID int    `json:"class_uid"`
						RawData  string `json:"raw_data"`
					}
					if err := json.Unmarshal(b, &e); err != nil || e.ClassUID != 6003 {
						t.Fatalf("%s: %v", line, err)
					}
					got = []byte(e.RawData)
				default:
					var e map[string]json.RawMessage
					if err := json.Unmarshal([]byte(line), &e); err != nil {
						t.Fatal(err)
					}
					if string(e["id"]) != `"7"` || string(e["type"]) != `"dev.pilox.vault.call.intent"` || string(e["specversion"]) != `"1.0"` || len(e["source"]) < 4 {
						t.Fatalf("%s", line)
					}
					got = e["data"]
				}
				back, err := evidence.ParseLeaf(got)
				if err != nil || back.Tool != tt.tool || back.Call != tt.call {
					t.Fatalf("%s: the leaf came back as %s: %v", name, got, err)
				}
			}
		})
	}
}
