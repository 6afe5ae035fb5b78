package tool

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParseRegistration(t *testing.T) {
	for _, tc := range []struct {
		what, doc string
		ok        bool
	}{
		{"an npm package with an exact version", `{"install":"npm:@acme/files@1.2.3"}`, true},
		{"a pre-release", `{"install":"npm:files@2026.8.31-rc.1"}`, true},
		{"a directory", `{"install":"path:/opt/srv"}`, true},
		{"an https url", `{"url":"https://crm.example/mcp","auth":{"secret":"crm"},"holds":"private[crm]"}`, true},
		{"http on loopback with the word", `{"url":"http://127.0.0.1:8080/mcp","allow_http":true}`, true},
		{"http on loopback without the word", `{"url":"http://127.0.0.1:8080/mcp"}`, false},
		{"http elsewhere with the word", `{"url":"http://crm.example/mcp","allow_http":true}`, false},
		{"http to a name that may resolve anywhere", `{"url":"http://localhost/mcp","allow_http":true}`, false},
		{"another scheme", `{"url":"file:///etc/passwd"}`, false},
		{"credentials in the url", `{"url":"https://u:p@crm.example/mcp"}`, false},
		{"a fragment", `{"url":"https://crm.example/mcp#x"}`, false},
		{"an upper-case host", `{"url":"https://CRM.example/mcp"}`, false},
		{"neither install nor url", `{}`, false},
		{"both", `{"install":"path:/opt/srv","url":"https://crm.example/"}`, false},
		{"a range", `{"install":"npm:files@^1.2.3"}`, false},
		{"a tag", `{"install":"npm:files@latest"}`, false},
		{"no version", `{"install":"npm:files"}`, false},
		{"no version with a scope", `{"install":"npm:@acme/files"}`, false},
		{"a git url in place of a name", `{"install":"npm:git+https://x.example/y@1.2.3"}`, false},
		{"an option in place of a name", `{"install":"npm:--registry=x@1.2.3"}`, false},
		{"a relative directory", `{"install":"path:srv"}`, false},
		{"a directory with dots", `{"install":"path:/opt/../srv"}`, false},
		{"pypi", `{"install":"pypi:files@1.2.3"}`, false},
		{"an environment", `{"install":"path:/opt/srv","env":{"A":"b"}}`, false},
		{"an unknown key", `{"install":"path:/opt/srv","reed":[]}`, false},
		{"a key twice", `{"install":"path:/opt/srv","read":["/a"],"read":["/b"]}`, false},
		{"a key twice in another case", `{"install":"path:/opt/srv","read":["/a"],"Read":["/b"]}`, false},
		{"the root granted", `{"install":"path:/opt/srv","read":["/"]}`, false},
		{"a relative path granted", `{"install":"path:/opt/srv","write":["x"]}`, false},
		{"the user's integrity", `{"install":"path:/opt/srv","source":"user"}`, false},
		{"unknown integrity", `{"install":"path:/opt/srv","source":"god"}`, false},
		{"an empty compartment list", `{"install":"path:/opt/srv","holds":"private[]"}`, false},
		{"an unknown risk", `{"install":"path:/opt/srv","tools":{"x":{"risk":"none"}}}`, false},
		{"an unknown role", `{"install":"path:/opt/srv","tools":{"x":{"roles":{"/a":"friend"}}}}`, false},
		{"a role of the whole", `{"install":"path:/opt/srv","tools":{"x":{"roles":{"":"path"}}}}`, false},
		{"paths of a url server", `{"url":"https://crm.example/","read":["/a"]}`, false},
		{"auth of an installed server", `{"install":"path:/opt/srv","auth":{"secret":"x"}}`, false},
		{"no object", `[]`, false},
	} {
		if _, err := ParseRegistration([]byte(tc.doc)); (err == nil) != tc.ok {
			t.Errorf("%s: error %v", tc.what, err)
		}
	}
	if _, err := ParseSource("oci:x@1"); !errors.Is(err, ErrUnsupportedSource) {
		t.Errorf("oci: %v", err)
	}
}

func TestParseCommand(t *testing.T) {
	for line, want := range map[string]string{
		"npx -y @scope/pkg@1.2.3 /srv --x":       "npm:@scope/pkg@1.2.3||/srv --x",
		"/usr/bin/npx pkg@1.2.3":                 "npm:pkg@1.2.3||",
		"npx --yes --package=pkg@1.2.3 bin -y a": "npm:pkg@1.2.3|bin|-y a",
		"npx -p pkg@1.2.3 bin":                   "npm:pkg@1.2.3|bin|",
		"npx -y @scope/pkg":                      "",
		"npx -y @scope/pkg@latest":               "",
		"npx -c id":                              "",
		"npx -p a@1.2.3 -p b@1.2.3 x":            "",
		"npx":                                    "",
		"uvx mcp-server-git":                     "",
		"docker run x":                           "",
		"sh -c id":                               "",
		"node server.js":                         "",
		"":                                       "",
	} {
		cmd, err := ParseCommand(strings.Fields(line))
		if (err == nil) != (want != "") {
			t.Errorf("%q: error %v", line, err)
			continue
		}
		if got := cmd.Source.String() + "|" + cmd.Entry + "|" + strings.Join(cmd.Args, " "); err == nil && got != want {
			t.Errorf("%q is %q, want %q", line, got, want)
		}
	}
	if _, err := ParseCommand([]string{"uvx", "x"}); !errors.Is(err, ErrUnsupportedSource) {
		t.Errorf("uvx: %v", err)
	}
}

func FuzzRegistration(f *testing.F) {
	f.Add(filesReg)
	f.Add(`{"url":"https://crm.example/mcp","auth":{"secret":"crm"},"holds":"private[crm,a]","source":"tool"}`)
	f.Add(`{"install":"path:/opt/x","tools":{"a":{"local":false,"roles":{"/b":"host"}}}}`)
	f.Fuzz(func(t *testing.T, doc string) {
		reg, err := ParseRegistration([]byte(doc))
		if err != nil {
			return
		}
		text, err := json.Marshal(reg)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseRegistration(text)
		if err != nil {
			t.Fatalf("%s came out as %s: %v", doc, text, err)
		}
		if text2, _ := json.Marshal(again); string(text2) != string(text) {
			t.Fatalf("%s, then %s", text, text2)
		}
	})
}

func FuzzDefinition(f *testing.F) {
	f.Add(readFile)
	f.Add(writeFile)
	f.Add(`{"name":"a","inputSchema":{"$ref":"#"},"title":"\u200b"}`)
	f.Fuzz(func(t *testing.T, doc string) {
		for _, s := range []*shape{&toolShape, &resourceShape, &templateShape, &promptShape} {
			o := s.parse([]byte(doc))
			if o.err != nil {
				continue
			}
			again := s.parse(o.def.Bytes())
			if again.err != nil || again.digest != o.digest || again.key != o.key {
				t.Fatalf("%s is pinned as %s and reads back as %v (%v)", doc, o.def, again, again.err)
			}
			_ = fmt.Sprint(examine("x", o.key, o.def.Root(), []string{"mail"}))
		}
	})
}
