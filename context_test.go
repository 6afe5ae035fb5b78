package vault_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/pilox/vault"
)

// What a record keeps of a decision makes the same facts again.
func TestContextRoundTrip(t *testing.T) {
	f := &vault.Facts{
		Call: &vault.Call{Server: "pay"},
		Grant: &vault.Grant{
			Chain: vault.Digest{1}, Links: []vault.Digest{{2}, {3}}, Expires: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC),
			Ask: []string{"finance"}, MayRead: []string{"crm"}, MaySendTo: []string{"example.com"},
		},
		Tool:    &vault.Tool{Server: "pay", Definition: vault.Digest{4}, Risk: vault.RiskMedium, Roles: map[string]vault.Role{"/to": vault.RoleRecipient}},
		Scope:   vault.Label{Integrity: vault.FromTool, Readers: vault.Only("crm"), Sources: []vault.Source{{Kind: vault.KindTool, Server: "files", Name: "read"}}},
		Origins: []vault.Origin{{Path: "/to", Found: []string{"task"}, Trusted: true}},
		Calls:   3, Denies: 1,
	}
	for _, readers := range []vault.Readers{vault.Only("crm"), vault.Public(), {}} {
		f.Scope.Readers = readers
		b, err := f.Context()
		if err != nil {
			t.Fatal(err)
		}
		got := &vault.Facts{Call: new(vault.Call), Grant: new(vault.Grant), Tool: new(vault.Tool)}
		if err := vault.ParseContext(b, got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, f) {
			t.Errorf("%s\ngot  %+v\nwant %+v", b, got, f)
		}
	}
}

// A context that says nothing is the worst, not the best.
func TestContextOfNothing(t *testing.T) {
	got := &vault.Facts{Call: new(vault.Call), Grant: new(vault.Grant), Tool: new(vault.Tool)}
	if err := vault.ParseContext([]byte(`{"integrity":"web"}`), got); err != nil {
		t.Fatal(err)
	}
	if got.Scope.Readers.IsPublic() || got.Scope.Integrity != vault.FromWeb || got.Tool.Risk != vault.RiskHigh || got.Tool.ReadOnly {
		t.Errorf("%+v %+v", got.Scope, got.Tool)
	}
	if err := vault.ParseContext([]byte(`{}`), got); err == nil {
		t.Error("a context without integrity was read")
	}
}
