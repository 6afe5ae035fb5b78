package capability

import (
	"testing"

	"github.com/pilox/vault"
)

func arg(name string, all ...Constraint) Rule { return Rule{Args: Args{name: One(all...)}} }

// TestArguments reads as the specification of constraints: a rule, arguments, and
// the pointer at which they are refused; "ok" where they pass.
func TestArguments(t *testing.T) {
	const ok = "ok"
	subpath := arg("/p", Constraint{SubPath: ptr("/srv/invoices")})
	glob := arg("/p", Constraint{Glob: ptr("/srv/*/a?.txt")})
	email := arg("/to", Constraint{EmailDomain: []string{"customer.example"}})
	web := arg("/u", Constraint{URL: &URL{Hosts: []string{"api.example", ".cdn.example"}, Path: "/v1"}})
	plainWeb := arg("/u", Constraint{URL: &URL{Schemes: []string{"http", "https"}, Hosts: []string{"127.0.0.1", "[::1]", "h.example"}, Ports: []int{8080}}})
	host := arg("/h", Constraint{HostSuffix: []string{"example.org"}})
	list := arg("/to", Constraint{Each: &Arg{All: []Constraint{{EmailDomain: []string{"a.example"}}}}})
	edits := arg("/edits", Constraint{Each: &Arg{All: []Constraint{{Object: Args{"/old": {}, "/new": One(Constraint{MaxLength: ptr(int64(3))})}}}}})
	nested := Rule{Args: Args{"/filter/path": One(Constraint{SubPath: ptr("/a")}), "/filter/deep/n": {Optional: true, All: []Constraint{{Int: &IntRange{Min: 1, Max: 3}}}}}}
	network := arg("/a", Constraint{CIDR: []string{"10.1.0.0/16", "fd00::/8"}})
	public := arg("/u", Constraint{PublicURL: &PublicURL{}})
	command := arg("/c", Constraint{Argv: &Argv{
		Programs: []string{"git"}, Options: []string{"--oneline", "-n=", "--"},
		Values: []Constraint{{Regex: ptr("[0-9]+")}}, Operands: []Constraint{{Regex: ptr("log|/srv/.*")}},
	}})
	carbon := arg("/s", Constraint{Each: &Arg{All: []Constraint{{EmailDomain: []string{"a.example"}}}}}, Constraint{Contains: []Scalar{String("boss@a.example")}}, Constraint{Count: &IntRange{Min: 1, Max: 2}})
	optional := Rule{Args: Args{"/a": {}, "/b": {Optional: true}}}
	for _, tt := range []struct {
		name string
		rule Rule
		args string
		want string
	}{
		{"no arguments where none are allowed", Rule{Args: Args{}}, `{}`, ok},
		{"an argument where none are allowed", Rule{Args: Args{}}, `{"a":1}`, "/a"},
		{"an object where none are allowed", Rule{Args: Args{}}, `{"a":{}}`, "/a"},
		{"open arguments", Rule{Any: true}, `{"a":{"b":[1,{}]}}`, ok},
		{"any type that is not listed fails not one of", arg("/c", Constraint{NotOneOf: []Scalar{String("a")}}), `{"c":1}`, "/c"},
		{"not one of", arg("/c", Constraint{NotOneOf: []Scalar{String("a")}}), `{"c":"b"}`, ok},
		{"one of not one of", arg("/c", Constraint{NotOneOf: []Scalar{String("a")}}), `{"c":"a"}`, "/c"},

		{"an address in the network", network, `{"a":"10.1.255.255"}`, ok},
		{"an address beside the network", network, `{"a":"10.2.0.0"}`, "/a"},
		{"an IPv4 address in IPv6 clothes is the IPv4 address", network, `{"a":"::ffff:10.1.2.3"}`, ok},
		{"an address with leading zeros", network, `{"a":"10.01.2.3"}`, "/a"},
		{"an address as one number", network, `{"a":"167838211"}`, "/a"},
		{"an address with a zone", network, `{"a":"fd00::1%eth0"}`, "/a"},
		{"an IPv6 address", network, `{"a":"fd00::1"}`, ok},
		{"a network is no address", network, `{"a":"10.1.0.0/16"}`, "/a"},

		{"a public URL", public, `{"u":"https://api.github.com/repos?x=1"}`, ok},
		{"a public address", public, `{"u":"https://1.1.1.1/"}`, ok},
		{"a private address", public, `{"u":"https://192.168.1.1/"}`, "/u"},
		{"the metadata address", public, `{"u":"https://169.254.169.254/latest"}`, "/u"},
		{"the metadata address as one number", public, `{"u":"https://2852039166/"}`, "/u"},
		{"the metadata address in hexadecimal", public, `{"u":"https://0xa9fea9fe/"}`, "/u"},
		{"the metadata address in octal", public, `{"u":"https://0251.0376.0251.0376/"}`, "/u"},
		{"loopback in short", public, `{"u":"https://127.1/"}`, "/u"},
		{"loopback in IPv6", public, `{"u":"https://[::1]/"}`, "/u"},
		{"a private address inside IPv6", public, `{"u":"https://[::ffff:10.0.0.1]/"}`, "/u"},
		{"a private address inside NAT64", public, `{"u":"https://[64:ff9b::a00:1]/"}`, "/u"},
		{"a public IPv6 address", public, `{"u":"https://[2606:4700::1111]/"}`, ok},
		{"a name of one label", public, `{"u":"https://intranet/"}`, "/u"},
		{"localhost", public, `{"u":"https://x.localhost/"}`, "/u"},
		{"a name of a private network", public, `{"u":"https://metadata.google.internal/"}`, "/u"},
		{"a name in other letters", public, `{"u":"https://ⅼⅿoogle.com/"}`, "/u"},
		{"userinfo before a public host", public, `{"u":"https://github.com@10.0.0.1/"}`, "/u"},
		{"another port than the scheme's", public, `{"u":"https://github.com:8443/"}`, "/u"},
		{"another scheme", public, `{"u":"http://github.com/"}`, "/u"},

		{"a command", command, `{"c":["git","log","--oneline","-n=3","/srv/repo"]}`, ok},
		{"another program", command, `{"c":["sh","-c","git log"]}`, "/c"},
		{"an option that is not listed", command, `{"c":["git","log","--upload-pack=evil"]}`, "/c"},
		{"an option without its value", command, `{"c":["git","log","-n"]}`, "/c"},
		{"a value for an option that takes none", command, `{"c":["git","log","--oneline=1"]}`, "/c"},
		{"a value that its rule refuses", command, `{"c":["git","log","-n=4 "]}`, "/c"},
		{"an operand that its rule refuses", command, `{"c":["git","push"]}`, "/c"},
		{"an option after two dashes", command, `{"c":["git","--","--exec=evil"]}`, "/c"},
		{"no program", command, `{"c":[]}`, "/c"},
		{"a command line in one string", command, `{"c":"git log"}`, "/c"},
		{"an operand that is no string", command, `{"c":["git",["log"]]}`, "/c"},
		{"a NUL in an operand", command, `{"c":["git","log\u0000"]}`, "/c"},

		{"the set in another order", arg("/s", Constraint{Set: []Scalar{String("a"), Int(1)}}), `{"s":[1,"a"]}`, ok},
		{"the set without one", arg("/s", Constraint{Set: []Scalar{String("a"), Int(1)}}), `{"s":["a"]}`, "/s"},
		{"the set with one twice", arg("/s", Constraint{Set: []Scalar{String("a"), Int(1)}}), `{"s":["a",1,1]}`, "/s"},
		{"a set is an array", arg("/s", Constraint{Set: []Scalar{String("a")}}), `{"s":"a"}`, "/s"},
		{"a subset", arg("/s", Constraint{Subset: []Scalar{String("a"), Int(1)}}), `{"s":["a"]}`, ok},
		{"an empty subset", arg("/s", Constraint{Subset: []Scalar{String("a"), Int(1)}}), `{"s":[]}`, ok},
		{"a subset with one twice", arg("/s", Constraint{Subset: []Scalar{String("a"), Int(1)}}), `{"s":["a","a"]}`, "/s"},
		{"a subset with another", arg("/s", Constraint{Subset: []Scalar{String("a"), Int(1)}}), `{"s":["a","b"]}`, "/s"},
		{"a subset with an array inside", arg("/s", Constraint{Subset: []Scalar{String("a")}}), `{"s":[["a"]]}`, "/s"},
		{"contains", carbon, `{"s":["x@a.example","boss@a.example"]}`, ok},
		{"does not contain", carbon, `{"s":["x@a.example"]}`, "/s"},
		{"contains, and an element that each refuses", carbon, `{"s":["boss@a.example","x@b.example"]}`, "/s/1"},
		{"too many elements", carbon, `{"s":["boss@a.example","x@a.example","y@a.example"]}`, "/s"},
		{"length between", arg("/s", Constraint{Length: &IntRange{Min: 2, Max: 3}}), `{"s":"€€"}`, ok},
		{"length below", arg("/s", Constraint{Length: &IntRange{Min: 2, Max: 3}}), `{"s":"€"}`, "/s"},

		{"a CEL test that holds", arg("/s", Constraint{CEL: ptr("short")}), `{"s":"abc"}`, ok},
		{"a CEL test that does not hold", arg("/s", Constraint{CEL: ptr("short")}), `{"s":"abcdefghijkl"}`, "/s"},
		{"a CEL test that fails", arg("/s", Constraint{CEL: ptr("fails")}), `{"s":"abc"}`, "/s"},
		{"a schema of an object", arg("/s", Constraint{Schema: ptr("object")}), `{"s":{"a":[1]}}`, ok},
		{"a schema that does not hold", arg("/s", Constraint{Schema: ptr("object")}), `{"s":[1]}`, "/s"},
		{"a schema and a scalar test", arg("/s", Constraint{Schema: ptr("string")}, Constraint{Prefix: ptr("a")}), `{"s":"b"}`, "/s"},

		{"a named argument is required", optional, `{"b":1}`, "/a"},
		{"an optional argument may be missing", optional, `{"a":1}`, ok},
		{"an argument that is not named", optional, `{"a":1,"c":1}`, "/c"},
		{"an unconstrained argument takes a scalar", optional, `{"a":null}`, ok},
		{"an unconstrained argument takes no array", optional, `{"a":[]}`, "/a"},
		{"an unconstrained argument takes no object", optional, `{"a":{}}`, "/a"},
		{"a name with a slash is escaped", Rule{Args: Args{"/a~1b": {}}}, `{"a/b":1}`, ok},

		{"exact string", arg("/c", Constraint{Exact: ptr(String("EUR"))}), `{"c":"EUR"}`, ok},
		{"exact compares bytes", arg("/c", Constraint{Exact: ptr(String("EUR"))}), `{"c":"eur"}`, "/c"},
		{"exact string is no number", arg("/c", Constraint{Exact: ptr(String("1"))}), `{"c":1}`, "/c"},
		{"exact number is no string", arg("/c", Constraint{Exact: ptr(Int(1))}), `{"c":"1"}`, "/c"},
		{"exact number in another spelling", arg("/c", Constraint{Exact: ptr(Int(100))}), `{"c":1e2}`, ok},
		{"exact string with escapes", arg("/c", Constraint{Exact: ptr(String("a\n\"<"))}), `{"c":"a\u000a\"\u003c"}`, ok},
		{"constant true", arg("/c", Constraint{Exact: ptr(Bool(true))}), `{"c":true}`, ok},
		{"constant true is not false", arg("/c", Constraint{Exact: ptr(Bool(true))}), `{"c":false}`, "/c"},
		{"no Unicode normalisation", arg("/c", Constraint{Exact: ptr(String("\u00e9"))}), `{"c":"e\u0301"}`, "/c"},
		{"one of", arg("/c", Constraint{OneOf: []Scalar{String("a"), Int(2)}}), `{"c":2}`, ok},
		{"none of", arg("/c", Constraint{OneOf: []Scalar{String("a"), Int(2)}}), `{"c":"2"}`, "/c"},
		{"one of nothing", arg("/c", Constraint{OneOf: []Scalar{}}), `{"c":"2"}`, "/c"},

		{"integer at the lower end", arg("/n", Constraint{Int: &IntRange{Min: 1, Max: 5}}), `{"n":1}`, ok},
		{"integer at the upper end", arg("/n", Constraint{Int: &IntRange{Min: 1, Max: 5}}), `{"n":5}`, ok},
		{"integer beyond", arg("/n", Constraint{Int: &IntRange{Min: 1, Max: 5}}), `{"n":6}`, "/n"},
		{"integer range takes no fraction", arg("/n", Constraint{Int: &IntRange{Min: 1, Max: 5}}), `{"n":1.5}`, "/n"},
		{"integer range takes no string", arg("/n", Constraint{Int: &IntRange{Min: 1, Max: 5}}), `{"n":"1"}`, "/n"},
		{"integer range takes no array", arg("/n", Constraint{Int: &IntRange{Min: 1, Max: 5}}), `{"n":[1]}`, "/n"},
		{"decimal inside", arg("/n", Constraint{Decimal: &DecimalRange{Min: 0, Max: 1000e6}}), `{"n":999.99}`, ok},
		{"decimal at the end", arg("/n", Constraint{Decimal: &DecimalRange{Min: 0, Max: 1000e6}}), `{"n":1000}`, ok},
		{"decimal just beyond", arg("/n", Constraint{Decimal: &DecimalRange{Min: 0, Max: 1000e6}}), `{"n":1000.000001}`, "/n"},
		{"decimal below", arg("/n", Constraint{Decimal: &DecimalRange{Min: 0, Max: 1000e6}}), `{"n":-0.01}`, "/n"},
		{"decimal with more places than are compared", arg("/n", Constraint{Decimal: &DecimalRange{Min: 0, Max: 1000e6}}), `{"n":1.0000001}`, "/n"},
		{"decimal too small for plain notation", arg("/n", Constraint{Decimal: &DecimalRange{Min: 0, Max: 1000e6}}), `{"n":1e-7}`, "/n"},

		{"prefix", arg("/s", Constraint{Prefix: ptr("INV-")}), `{"s":"INV-7"}`, ok},
		{"not the prefix", arg("/s", Constraint{Prefix: ptr("INV-")}), `{"s":"inv-7"}`, "/s"},
		{"length in code points", arg("/s", Constraint{MaxLength: ptr(int64(2))}), `{"s":"€€"}`, ok},
		{"too long", arg("/s", Constraint{MaxLength: ptr(int64(2))}), `{"s":"abc"}`, "/s"},
		{"length of a number", arg("/s", Constraint{MaxLength: ptr(int64(2))}), `{"s":1}`, "/s"},

		{"the directory itself", subpath, `{"p":"/srv/invoices"}`, ok},
		{"below the directory", subpath, `{"p":"/srv/invoices/2026/a.txt"}`, ok},
		{"a sibling with the same beginning", subpath, `{"p":"/srv/invoices-old/a"}`, "/p"},
		{"dot dot", subpath, `{"p":"/srv/invoices/../../etc/passwd"}`, "/p"},
		{"dot dot that stays inside", subpath, `{"p":"/srv/invoices/a/../b"}`, "/p"},
		{"dot", subpath, `{"p":"/srv/invoices/./a"}`, "/p"},
		{"an empty segment", subpath, `{"p":"/srv/invoices//a"}`, "/p"},
		{"a slash at the end", subpath, `{"p":"/srv/invoices/"}`, "/p"},
		{"NUL", subpath, `{"p":"/srv/invoices/a\u0000.txt"}`, "/p"},
		{"a relative path", subpath, `{"p":"srv/invoices/a"}`, "/p"},
		{"a path that is no string", subpath, `{"p":["/srv/invoices/a"]}`, "/p"},

		{"glob", glob, `{"p":"/srv/x/ab.txt"}`, ok},
		{"glob matches the whole value", glob, `{"p":"/srv/x/ab.txt.exe"}`, "/p"},
		{"a star stops at a slash", glob, `{"p":"/srv/x/y/ab.txt"}`, "/p"},
		{"a glob dot is a dot", glob, `{"p":"/srv/x/abXtxt"}`, "/p"},
		{"a double star does not stop", arg("/p", Constraint{Glob: ptr("/srv/**")}), `{"p":"/srv/x/y\nz"}`, ok},
		{"regex matches the whole value", arg("/s", Constraint{Regex: ptr("[a-z]+")}), `{"s":"abc\nDEF"}`, "/s"},
		{"regex with alternatives is anchored on both", arg("/s", Constraint{Regex: ptr("a|b")}), `{"s":"ac"}`, "/s"},
		{"regex in multi-line mode is anchored all the same", arg("/s", Constraint{Regex: ptr("(?m)^a$")}), `{"s":"a\nb"}`, "/s"},
		{"regex", arg("/s", Constraint{Regex: ptr("a|b")}), `{"s":"b"}`, ok},

		{"e-mail", email, `{"to":"Jo.Do+x@Customer.Example"}`, ok},
		{"e-mail of a sub-domain", email, `{"to":"a@x.customer.example"}`, "/to"},
		{"e-mail of a longer domain", email, `{"to":"a@customer.example.evil.test"}`, "/to"},
		{"two addresses", email, `{"to":"a@evil.test,b@customer.example"}`, "/to"},
		{"two at signs", email, `{"to":"a@evil.test@customer.example"}`, "/to"},
		{"a display name", email, `{"to":"x <a@customer.example>"}`, "/to"},
		{"a quoted local part", email, `{"to":"\"a@evil.test\"@customer.example"}`, "/to"},
		{"a header injected", email, `{"to":"a@customer.example\nBcc: b@evil.test"}`, "/to"},
		{"a trailing dot", email, `{"to":"a@customer.example."}`, "/to"},

		{"url", web, `{"u":"https://api.example/v1/accounts?x=1"}`, ok},
		{"url with an upper-case host", web, `{"u":"https://API.example/v1"}`, ok},
		{"url with its own port spelled out", web, `{"u":"https://api.example:443/v1/"}`, ok},
		{"url below a host suffix", web, `{"u":"https://a.b.cdn.example/v1/x"}`, ok},
		{"url of the suffix itself", web, `{"u":"https://cdn.example/v1/x"}`, "/u"},
		{"url with another scheme", web, `{"u":"http://api.example/v1"}`, "/u"},
		{"url with another port", web, `{"u":"https://api.example:8443/v1"}`, "/u"},
		{"url with userinfo", web, `{"u":"https://api.example@evil.test/v1"}`, "/u"},
		{"url with userinfo and the right host", web, `{"u":"https://a:b@api.example/v1"}`, "/u"},
		{"url with a backslash", web, `{"u":"https://evil.test\\@api.example/v1"}`, "/u"},
		{"url with a fragment", web, `{"u":"https://api.example/v1#x"}`, "/u"},
		{"url with another path", web, `{"u":"https://api.example/v10"}`, "/u"},
		{"url with dot segments", web, `{"u":"https://api.example/v1/../admin"}`, "/u"},
		{"url with encoded dots", web, `{"u":"https://api.example/v1/%2e%2E/admin"}`, "/u"},
		{"url with an encoded slash", web, `{"u":"https://api.example/v1/..%2fadmin"}`, "/u"},
		{"url encoded twice", web, `{"u":"https://api.example/v1/%252e%252e/admin"}`, "/u"},
		{"url with a tab", web, `{"u":"https://api.exa\tmple/v1"}`, "/u"},
		{"url with another script in the host", web, `{"u":"https://\u0430pi.example/v1"}`, "/u"},
		{"url without a host", web, `{"u":"https:///v1"}`, "/u"},
		{"url without slashes", web, `{"u":"https:api.example/v1"}`, "/u"},
		{"url with a broken escape", web, `{"u":"https://api.example/v1/%zz"}`, "/u"},
		{"url with a listed port", plainWeb, `{"u":"http://h.example:8080/x"}`, ok},
		{"url without the listed port", plainWeb, `{"u":"http://h.example/x"}`, "/u"},
		{"url with a listed address", plainWeb, `{"u":"http://127.0.0.1:8080/"}`, ok},
		{"url with a listed v6 address", plainWeb, `{"u":"http://[::1]:8080"}`, ok},
		{"url with an address in another spelling", plainWeb, `{"u":"http://0x7f000001:8080/"}`, "/u"},

		{"host below", host, `{"h":"a.Example.org"}`, ok},
		{"the host itself", host, `{"h":"example.org"}`, ok},
		{"a host that only ends alike", host, `{"h":"badexample.org"}`, "/h"},
		{"a host with a port", host, `{"h":"example.org:25"}`, "/h"},

		{"each element", list, `{"to":["x@a.example","y@a.example"]}`, ok},
		{"an empty array", list, `{"to":[]}`, ok},
		{"one bad element", list, `{"to":["x@a.example","y@b.example"]}`, "/to/1"},
		{"an array is wanted", list, `{"to":"x@a.example"}`, "/to"},
		{"an array inside the array", list, `{"to":[["x@a.example"]]}`, "/to/0"},
		{"objects in an array", edits, `{"edits":[{"old":"a","new":"b"}]}`, ok},
		{"a bad member in an array", edits, `{"edits":[{"old":"a","new":"b"},{"old":"a","new":"long"}]}`, "/edits/1/new"},
		{"an unnamed member in an array", edits, `{"edits":[{"old":"a","new":"b","x":1}]}`, "/edits/0/x"},

		{"nested", nested, `{"filter":{"path":"/a/b"}}`, ok},
		{"nested and optional", nested, `{"filter":{"path":"/a/b","deep":{"n":2}}}`, ok},
		{"nested and wrong", nested, `{"filter":{"path":"/b"}}`, "/filter/path"},
		{"nested and missing", nested, `{"filter":{}}`, "/filter/path"},
		{"nested, all missing", nested, `{}`, "/filter"},
		{"nested and not named", nested, `{"filter":{"path":"/a","x":1}}`, "/filter/x"},
		{"deeper and wrong", nested, `{"filter":{"path":"/a","deep":{"n":4}}}`, "/filter/deep/n"},
		{"nested in something that is no object", nested, `{"filter":"/a"}`, "/filter"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.cfg.Engines = &testEngines
			_, err := w.verify(w.verifier(), w.mint(w.root(tt.rule)), w.agent, newCall(tt.args))
			if tt.want == ok {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if code(err) != vault.CodeCapabilityArgument || vault.DenialOf(err).Reason.Path != tt.want {
				t.Fatalf("got %v, want %s at %s", err, vault.CodeCapabilityArgument, tt.want)
			}
		})
	}
}

// TestRulesThatAreRefused lists links that nobody can sign.
func TestRulesThatAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(*Link)
	}{
		{"without tenant", func(l *Link) { l.Tenant = "" }},
		{"without principal", func(l *Link) { l.Principal = "" }},
		{"without agent", func(l *Link) { l.Agent = "" }},
		{"without task", func(l *Link) { l.Task = nil }},
		{"without task id", func(l *Link) { l.Task.ID = "" }},
		{"without audience", func(l *Link) { l.Audience = "" }},
		{"without not-before", func(l *Link) { l.NotBefore = 0 }},
		{"without expiry", func(l *Link) { l.Expires = 0 }},
		{"without issue time", func(l *Link) { l.Issued = 0 }},
		{"without holder", func(l *Link) { l.Holder = nil }},
		{"without grants", func(l *Link) { l.Grants = nil }},
		{"without budgets", func(l *Link) { l.Budgets = nil }},
		{"without a budget of calls", func(l *Link) { l.Budgets = &Budgets{BytesOut: Limit(1)} }},
		{"with a parent", func(l *Link) { l.Parent[0] = 1 }},
		{"expires before it begins", func(l *Link) { l.Expires = l.NotBefore }},
		{"expires after the year 9999", func(l *Link) { l.Expires = lastInstant + 1 }},
		{"deeper than a chain can be", func(l *Link) { l.Depth = Depth(16) }},
		{"a holder of two kinds", func(l *Link) { l.Holder.Bearer = true }},
		{"a holder of no kind", func(l *Link) { l.Holder = &Holder{} }},
		{"a holder that is no SPIFFE ID", func(l *Link) { l.Holder = &Holder{SPIFFE: "https://x"} }},
		{"an unknown kind", func(l *Link) { l.Grants["tools"] = map[vault.Target]Rule{} }},
		{"an unknown grade", func(l *Link) { l.MinGrade = 9 }},
		{"an empty target name", func(l *Link) { l.Grants[vault.KindTool][vault.Target{}] = Rule{Any: true} }},
		{"a negative budget", func(l *Link) { l.Budgets.Calls = Limit(-1) }},
		{"a sum without target", func(l *Link) { l.Budgets.Sums = []Sum{{Arg: "/a", Unit: "EUR"}} }},
		{"a sum without unit", func(l *Link) { l.Budgets.Sums = []Sum{{Kind: vault.KindTool, Name: "x", Arg: "/a"}} }},
		{"a control character in the purpose", func(l *Link) { l.Task.Purpose = "a\x1b[2J" }},
		{"inputs without end", func(l *Link) { l.Task.Inputs = string(make([]byte, maxInputs+1)) }},
		{"a rule without args", rule(Rule{})},
		{"a rule with args and any", rule(Rule{Any: true, Args: Args{}})},
		{"no JSON Pointer", rule(Rule{Args: Args{"path": {}}})},
		{"a stray tilde", rule(Rule{Args: Args{"/a~2": {}}})},
		{"the pointer to everything", rule(Rule{Args: Args{"": {}}})},
		{"an argument inside another", rule(Rule{Args: Args{"/a": {}, "/a/b": {}}})},
		{"an argument inside an object", rule(Rule{Args: Args{"/a": One(Constraint{Object: Args{}}), "/a/b": {}}})},
		{"a constraint of no kind", rule(arg("/a", Constraint{}))},
		{"a constraint of two kinds", rule(arg("/a", Constraint{Prefix: ptr("a"), Glob: ptr("a")}))},
		{"constraints of different types", rule(arg("/a", Constraint{Prefix: ptr("a")}, Constraint{Each: &Arg{}}))},
		{"an empty range", rule(arg("/a", Constraint{Int: &IntRange{Min: 2, Max: 1}}))},
		{"a regex that does not compile", rule(arg("/a", Constraint{Regex: ptr("a)(b")}))},
		{"an empty prefix", rule(arg("/a", Constraint{Prefix: ptr("")}))},
		{"a sub-path that is not clean", rule(arg("/a", Constraint{SubPath: ptr("/a/../b")}))},
		{"a relative sub-path", rule(arg("/a", Constraint{SubPath: ptr("a")}))},
		{"an e-mail domain in another script", rule(arg("/a", Constraint{EmailDomain: []string{"ex\u00e4mple.org"}}))},
		{"a URL without hosts", rule(arg("/a", Constraint{URL: &URL{}}))},
		{"a URL with a scheme nobody knows", rule(arg("/a", Constraint{URL: &URL{Schemes: []string{"file"}, Hosts: []string{"a.example"}}}))},
		{"an optional element", rule(arg("/a", Constraint{Each: &Arg{Optional: true}}))},
		{"an exact value of no type", rule(arg("/a", Constraint{Exact: &Scalar{}}))},
		{"a network with host bits", rule(arg("/a", Constraint{CIDR: []string{"10.0.0.1/8"}}))},
		{"a network that is none", rule(arg("/a", Constraint{CIDR: []string{"10.0.0.0"}}))},
		{"a public URL with a scheme nobody knows", rule(arg("/a", Constraint{PublicURL: &PublicURL{Schemes: []string{"file"}}}))},
		{"an argument vector without program", rule(arg("/a", Constraint{Argv: &Argv{}}))},
		{"an option that is none", rule(arg("/a", Constraint{Argv: &Argv{Programs: []string{"git"}, Options: []string{"log"}}}))},
		{"an option with its value", rule(arg("/a", Constraint{Argv: &Argv{Programs: []string{"git"}, Options: []string{"--n=3"}}}))},
		{"contains that leaves the elements open", rule(arg("/a", Constraint{Contains: []Scalar{Int(1)}}))},
		{"count that leaves the elements open", rule(arg("/a", Constraint{Count: &IntRange{Min: 0, Max: 1}}))},
		{"a set beside a scalar test", rule(arg("/a", Constraint{Set: []Scalar{Int(1)}}, Constraint{Prefix: ptr("a")}))},
		{"a negative length", rule(arg("/a", Constraint{Length: &IntRange{Min: -1, Max: 1}}))},
		{"an empty expression", rule(arg("/a", Constraint{CEL: ptr("")}))},
		{"an expression without end", rule(arg("/a", Constraint{CEL: ptr(string(make([]byte, maxText+1)))}))},
		{"too many caveats", func(l *Link) { l.Caveats = make([]string, maxCaveats+1) }},
		{"an empty caveat", func(l *Link) { l.Caveats = []string{""} }},
		{"a third party without audience", func(l *Link) { l.ThirdParty = []ThirdParty{{Group: "legal"}} }},
		{"a signature from an unknown risk on", func(l *Link) { l.SignAt = "severe" }},
		{"a delegate key without thumbprint", func(l *Link) { l.DelegateKeys = []vault.Digest{{}} }},
		{"a negative budget of recipients", func(l *Link) { l.Budgets.Recipients = Limit(-1) }},
		{"nesting without end", rule(deep(maxNesting + 2))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			l := w.root(Rule{Any: true})
			tt.edit(&l)
			if _, err := Mint(l, Signer{Key: w.issuer, KID: "k1"}); err == nil {
				t.Fatal("signed")
			}
		})
	}
}

func rule(r Rule) func(*Link) {
	return func(l *Link) { l.Grants[vault.KindTool][readFile] = r }
}

func deep(n int) Rule {
	a := Arg{}
	for range n {
		a = Arg{All: []Constraint{{Each: ptr(a)}}}
	}
	return Rule{Args: Args{"/a": a}}
}

func TestDecimal(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		ok       bool
	}{
		{"0", "0", true},
		{"1000", "1000", true},
		{"0.25", "0.25", true},
		{"-0.25", "-0.25", true},
		{"12.500000", "12.5", true},
		{"-12", "-12", true},
		{"999999999999.999999", "999999999999.999999", true},
		{"1000000000000", "", false},
		{"0.0000001", "", false},
		{"1e3", "", false},
		{"", "", false},
		{"-", "", false},
		{"1.", "", false},
		{".5", "", false},
		{"01", "", false},
		{"+1", "", false},
		{"1.2.3", "", false},
		{"--1", "", false},
	} {
		d, err := ParseDecimal(tt.in)
		if (err == nil) != tt.ok || tt.ok && d.String() != tt.want {
			t.Errorf("%q: got %v, %v; want %q", tt.in, d, err, tt.want)
		}
	}
}
