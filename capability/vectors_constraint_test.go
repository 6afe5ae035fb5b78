package capability

import "github.com/pilox/vault"

// A constraintVector is one constraint on the argument v of a tool, with values
// that pass it and values that do not.
type constraintVector struct {
	name     string
	all      []Constraint
	ok, fail []string // canonical JSON
}

func (c *constraintVector) make(call func(vault.Target, string, vault.Code, string) vectorCall) (name string, r Rule, calls []vectorCall) {
	for _, v := range c.ok {
		calls = append(calls, call(readFile, `{"v":`+v+`}`, "", ""))
	}
	for _, v := range c.fail {
		calls = append(calls, call(readFile, `{"v":`+v+`}`, vault.CodeCapabilityArgument, "/v"))
	}
	return "constraint: " + c.name, arg("/v", c.all...), calls
}

func constraintVectors() []constraintVector {
	return []constraintVector{
		{"none: any scalar", nil, []string{`"a"`, `1.5`, `true`, `null`}, []string{`[]`, `{}`}},
		{"exact text", []Constraint{{Exact: ptr(String("a\n"))}}, []string{`"a\n"`}, []string{`"a"`, `1`}},
		{"exact integer", []Constraint{{Exact: ptr(Int(100))}}, []string{`100`}, []string{`"100"`, `100.5`}},
		{"exact boolean", []Constraint{{Exact: ptr(Bool(true))}}, []string{`true`}, []string{`false`, `"true"`, `1`}},
		{"one_of", []Constraint{{OneOf: []Scalar{String("a"), Int(2)}}}, []string{`"a"`, `2`}, []string{`"2"`, `"A"`, `null`}},
		{"not_one_of", []Constraint{{NotOneOf: []Scalar{String("a")}}}, []string{`"b"`, `""`}, []string{`"a"`, `1`, `null`}},
		{"integer", []Constraint{{Int: &IntRange{Min: -1, Max: 5}}}, []string{`-1`, `0`, `5`}, []string{`6`, `1.5`, `"1"`}},
		{"decimal", []Constraint{{Decimal: &DecimalRange{Min: -500_000, Max: 1000e6}}}, []string{`-0.5`, `1000`, `0.000001`}, []string{`-0.500001`, `1000.000001`, `1e-7`, `"1"`}},
		{"prefix", []Constraint{{Prefix: ptr("INV-")}}, []string{`"INV-"`, `"INV-1"`}, []string{`"inv-1"`, `1`}},
		{"subpath", []Constraint{{SubPath: ptr("/srv/a")}}, []string{`"/srv/a"`, `"/srv/a/b c"`}, []string{`"/srv/ab"`, `"/srv/a/"`, `"/srv/a/../b"`, `"/srv/a//b"`, `"/srv/a/./b"`, `"srv/a"`, `"/srv/a/\u0000"`}},
		{"glob", []Constraint{{Glob: ptr("/srv/*/a?.txt")}}, []string{`"/srv/x/ab.txt"`, `"/srv//a..txt"`}, []string{`"/srv/x/y/ab.txt"`, `"/srv/x/a.txt"`, `"/srv/x/a/.txt"`, `"x/srv/x/ab.txt"`}},
		{"glob over slashes", []Constraint{{Glob: ptr("/a/**.md")}}, []string{`"/a/b/c.md"`, `"/a/.md"`}, []string{`"/a/b.txt"`}},
		{"regex", []Constraint{{Regex: ptr("[a-z]+|[0-9]")}}, []string{`"abc"`, `"1"`}, []string{`"12"`, `"a1"`, `""`, `"a\n"`}},
		{"email_domain", []Constraint{{EmailDomain: []string{"a.example"}}}, []string{`"x@a.example"`, `"X.y+z@A.example"`}, []string{`"x@b.a.example"`, `"x@a.example,y@b.example"`, `"<x@a.example>"`, `"\"x\"@a.example"`, `".x@a.example"`, `"x..y@a.example"`, `"@a.example"`}},
		{
			"url",
			[]Constraint{{URL: &URL{Hosts: []string{"api.example", ".cdn.example"}, Path: "/v1"}}},
			[]string{`"https://api.example/v1"`, `"https://API.example:443/v1/x?q=1"`, `"https://x.cdn.example/v1/"`},
			[]string{`"http://api.example/v1"`, `"https://cdn.example/v1"`, `"https://api.example/v2"`, `"https://api.example/v1/../v2"`, `"https://api.example/v1/%2e%2e/x"`, `"https://u@api.example/v1"`, `"https://api.example/v1#x"`, `"https://api.example:8443/v1"`, `"https://api.example\\@evil.example/v1"`},
		},
		{"url with ports and an address", []Constraint{{URL: &URL{Schemes: []string{"http"}, Hosts: []string{"127.0.0.1"}, Ports: []int{8080}}}}, []string{`"http://127.0.0.1:8080/"`}, []string{`"http://127.0.0.1/"`, `"http://127.1:8080/"`, `"http://2130706433:8080/"`}},
		{"host_suffix", []Constraint{{HostSuffix: []string{"example.org"}}}, []string{`"example.org"`, `"a.Example.org"`}, []string{`"badexample.org"`, `"example.org."`, `"example.org:443"`, `"a..example.org"`}},
		{"max_length", []Constraint{{MaxLength: ptr(int64(2))}}, []string{`""`, `"€€"`}, []string{`"abc"`, `1`}},
		{"length", []Constraint{{Length: &IntRange{Min: 1, Max: 2}}}, []string{`"€"`}, []string{`""`, `"abc"`}},
		{"cidr", []Constraint{{CIDR: []string{"10.1.0.0/16", "fd00::/8"}}}, []string{`"10.1.2.3"`, `"::ffff:10.1.2.3"`, `"fd00::1"`}, []string{`"10.2.0.0"`, `"10.01.2.3"`, `"fd00::1%eth0"`, `"167838211"`, `"10.1.0.0/16"`}},
		{
			"public_url",
			[]Constraint{{PublicURL: &PublicURL{}}},
			[]string{`"https://github.com/a?b=c"`, `"https://1.1.1.1/"`, `"https://[2606:4700::1111]/"`},
			[]string{`"https://10.0.0.1/"`, `"https://169.254.169.254/"`, `"https://127.1/"`, `"https://0x7f000001/"`, `"https://[::1]/"`, `"https://[::ffff:10.0.0.1]/"`, `"https://localhost/"`, `"https://a.internal/"`, `"http://github.com/"`, `"https://github.com:8443/"`},
		},
		{
			"argv",
			[]Constraint{{Argv: &Argv{Programs: []string{"git"}, Options: []string{"--oneline", "-n="}, Values: []Constraint{{Regex: ptr("[0-9]+")}}, Operands: []Constraint{{OneOf: []Scalar{String("log")}}}, Max: 4}}},
			[]string{`["git"]`, `["git","log","--oneline","-n=3"]`},
			[]string{`["sh"]`, `["git","push"]`, `["git","--upload-pack=x"]`, `["git","-n"]`, `["git","-n=x"]`, `["git","--oneline=1"]`, `["git","log","log","log","log"]`, `[]`, `"git"`, `["git",1]`},
		},
		{"set", []Constraint{{Set: []Scalar{String("a"), Int(1)}}}, []string{`["a",1]`, `[1,"a"]`}, []string{`["a"]`, `["a",1,1]`, `["a",1,"b"]`, `"a"`}},
		{"subset", []Constraint{{Subset: []Scalar{String("a"), Int(1)}}}, []string{`[]`, `["a"]`, `[1,"a"]`}, []string{`["a","a"]`, `["b"]`, `[["a"]]`}},
		{"contains and count, beside subset", []Constraint{{Subset: []Scalar{String("a"), String("b"), String("c")}}, {Contains: []Scalar{String("a")}}, {Count: &IntRange{Min: 1, Max: 2}}}, []string{`["a"]`, `["b","a"]`}, []string{`["b"]`, `["a","b","c"]`, `[]`}},
		{"two together", []Constraint{{Prefix: ptr("a")}, {MaxLength: ptr(int64(3))}}, []string{`"abc"`}, []string{`"abcd"`, `"b"`}},
	}
}
