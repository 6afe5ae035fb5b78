package daemon

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseConfig(t *testing.T) {
	for _, tt := range []struct {
		name, yaml, want string // want: part of the error, or "" for none
	}{
		{"nothing is the defaults", "", ""},
		{"the usual keys", "version: 1\nlisten: {http: 127.0.0.1:7800}\napprovals: {wait: 5s}\n", ""},
		{"an unknown key names its line and the nearest one", "version: 1\nlisten:\n  htpp: x\n", `line 3: unknown key "htpp"; did you mean "http"?`},
		{"an unknown key that is near nothing lists what is known", "version: 1\nfrobnicate: 1\n", `line 2: unknown key "frobnicate"; known here: version, data`},
		{"a key twice", "store: sqlite\nstore: sqlite\n", "already defined"},
		{"an alias", "a: &x 1\nb: *x\n", "anchors and aliases"},
		{"two documents", "version: 1\n---\nversion: 1\n", "more than one document"},
		{"the wrong type", "listen: {bearer: perhaps}\n", "bool"},
		{"too large", strings.Repeat("# x\n", maxConfig), "larger than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseConfig([]byte(tt.yaml))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestCompleteConfig(t *testing.T) {
	env := func(k string) string { return map[string]string{"HOME": "/home/u"}[k] }
	for _, tt := range []struct{ name, yaml, want string }{
		{"another version", "version: 2", "reads version 1"},
		{"a public address", "listen: {http: 0.0.0.0:7700}", "only loopback"},
		{"a public name", "listen: {http: example.com:7700}", "only loopback"},
		{"a relative socket", "listen: {admin: x.sock}", "absolute path"},
		{"a store that is not here", "store: mysql://u:hunter2@x", "want sqlite or postgres"},
		{"a bundle nobody signed", "policy: {bundles: [{dir: p}], hooks: [{at: tool.call, query: data.x}]}", "unsigned: true"},
		{"a bundle signed by a key that is not there", "policy: {bundles: [{dir: p, signing: {keyid: k1}}], hooks: [{at: tool.call, query: data.x}]}", "no key"},
		{"a bundle of nothing", "policy: {bundles: [{name: main, unsigned: true}], hooks: [{at: tool.call, query: data.x}]}", "want dir"},
		{"a bundle of two things", "policy: {bundles: [{dir: p, file: p.tar.gz, unsigned: true}], hooks: [{at: tool.call, query: data.x}]}", "want dir"},
		{"a principal on anybody's word", "doors: {ext_authz: '127.0.0.1:9000', trust_principal: true}", "a socket"},
		{"a grade that is none", "sandbox: {min_grade: Z}", "min_grade"},
		{"an issuer that is no URI", "exchange: {aat: [{issuer: partner, jwks: k}]}", "want a URI"},
		{"an issuer with a space", "exchange: {aat: [{issuer: 'https://a b', jwks: k}]}", "want a URI"},
		{"an issuer twice", "exchange: {aat: [{issuer: 'https://a', jwks: k}, {issuer: 'https://a', jwks: l}]}", "is there twice"},
		{"an issuer without keys", "exchange: {aat: [{issuer: 'https://a'}]}", "want a file"},
		{"an issuer with keys on a network", "exchange: {aat: [{issuer: 'https://a', jwks: 'https://a/k'}]}", "want a file"},
		{"an issuer whose tokens nothing is given for", "exchange: {aat: [{issuer: 'https://a', jwks: k}]}", "no grants"},
		{"a sink over plain HTTP", "sinks: [{name: a, kind: http, url: 'http://siem.example'}]", "want https"},
		{"a sink into the data directory", "sinks: [{name: a, kind: file, file: /home/u/.local/share/pvault/keys/x.pem}]", "Vault's own"},
		{"metrics without a token", "telemetry: {metrics: {address: '127.0.0.1:1'}}", "belong together"},
		{"metrics for the network", "telemetry: {metrics: {address: '0.0.0.0:1', token: /t}}", "only loopback"},
		{"traces over plain HTTP", "telemetry: {traces: {url: 'http://otel.example'}}", "want https"},
		{"traces to nowhere", "telemetry: {traces: {sample: 0.5}}", "url is missing"},
		{"more than all traces", "telemetry: {traces: {url: 'https://otel.example', sample: 1.5}}", "want 0 to 1"},
		{"a share that is no number", "telemetry: {traces: {url: 'https://otel.example', sample: .nan}}", "want 0 to 1"},
		{"a tenant that is a path", "tenant: ../x", "tenant"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ParseConfig([]byte(tt.yaml))
			if err == nil {
				err = c.Complete(env)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
		})
	}
	var c Config
	if err := c.Complete(env); err != nil || c.Data != "/home/u/.local/share/pvault" || c.Sandbox.MinGrade != "B" || c.Approvals.Wait != 25*time.Second {
		t.Errorf("defaults: %+v, %v", c, err)
	}
	if err := new(Config).Complete(func(string) string { return "" }); err == nil {
		t.Error("no HOME and no data directory passes")
	}
}

func TestLoadConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vault.yaml")
	if err := os.WriteFile(path, []byte("policy: {bundles: [{dir: rules, unsigned: true}], hooks: [{at: tool.call, query: data.x}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"HOME": "/h", "PVAULT_DATA": "/d", "PVAULT_LISTEN_HTTP": "off", "PVAULT_LISTEN_BEARER": "true"}
	c, err := LoadConfig(path, func(k string) string { return env[k] })
	if err != nil || c.Data != "/d" || c.Listen.HTTP != "off" || !c.Listen.Bearer || c.Policy.Bundles[0].Dir != filepath.Join(filepath.Dir(path), "rules") {
		t.Errorf("%+v, %v", c, err)
	}
	env["PVAULT_LISTEN_BEARER"] = "yes"
	if _, err := LoadConfig(path, func(k string) string { return env[k] }); err == nil {
		t.Error("an odd override passes")
	}
	if _, err := LoadConfig(filepath.Join(t.TempDir(), "none.yaml"), os.Getenv); err == nil {
		t.Error("a named file that does not exist passes")
	}
}

// TestSchema holds the published schema to the structs it describes.
func TestSchema(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal(Schema, &schema); err != nil {
		t.Fatal(err)
	}
	compareKeys(t, "", schema, reflect.TypeOf(Config{}))
}

func compareKeys(t *testing.T, path string, schema map[string]any, typ reflect.Type) {
	t.Helper()
	props, _ := schema["properties"].(map[string]any)
	if schema["additionalProperties"] != false {
		t.Errorf("%s: not closed", path)
	}
	seen := map[string]bool{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		if !f.IsExported() {
			continue // nobody writes it in a file
		}
		key := f.Tag.Get("yaml")
		seen[key] = true
		sub, ok := props[key].(map[string]any)
		if !ok {
			t.Errorf("%s/%s is not in the schema", path, key)
			continue
		}
		ft := f.Type
		if ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct {
			ft = ft.Elem()
			sub, _ = sub["items"].(map[string]any)
		}
		if ft.Kind() == reflect.Struct {
			compareKeys(t, path+"/"+key, sub, ft)
		}
	}
	for key := range props {
		if !seen[key] {
			t.Errorf("%s/%s is in the schema only", path, key)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("version: 1\nlisten: {http: 127.0.0.1:1}\n"))
	f.Add([]byte("a: &x [*x]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err == nil {
			_ = c.Complete(func(string) string { return "/x" })
		}
	})
}
