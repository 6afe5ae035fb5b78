package daemon

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/pilox/vault"
	"github.com/pilox/vault/internal/egress"
	"github.com/pilox/vault/internal/store"
)

// Ledger says how events become durable.
type Ledger struct {
	WAL             bool   `yaml:"wal"`              // durable in a local log first; for one daemon alone
	DurableOutcomes string `yaml:"durable_outcomes"` // low, medium or high: from this risk on an outcome is on disk before the answer; "" means none
}

// outcomeDurable says which outcomes wait for the disk.
func (l *Ledger) outcomeDurable() func(*vault.Facts) bool {
	for _, from := range []vault.Risk{vault.RiskLow, vault.RiskMedium, vault.RiskHigh} {
		if l.DurableOutcomes == from.String() {
			return func(f *vault.Facts) bool { return f.Tool.Risk.AtLeast(from) }
		}
	}
	return nil
}

// Schema is the JSON Schema of vault.yaml.
//
//go:embed schema.json
var Schema []byte

// maxConfig bounds vault.yaml; people write it by hand.
const maxConfig = 256 << 10

// A Config is vault.yaml. The zero Config, completed by [Config.Complete], runs on
// embedded defaults.
type Config struct {
	Version   int       `yaml:"version"`   // 1; zero means 1
	Data      string    `yaml:"data"`      // directory; "" means $XDG_DATA_HOME/pvault
	Tenant    string    `yaml:"tenant"`    // owner of the ledger; "" means default
	Domain    string    `yaml:"domain"`    // SPIFFE trust domain; "" means vault.internal
	Cluster   string    `yaml:"cluster"`   // audience of capabilities, one budget domain; "" means one made at first start
	Listen    Listen    `yaml:"listen"`    //
	Store     string    `yaml:"store"`     // sqlite, or postgres://user@host/database; "" means sqlite
	Ledger    Ledger    `yaml:"ledger"`    //
	Anchor    Anchor    `yaml:"anchor"`    // who vouches for the ledger's checkpoints
	Tiles     Tiles     `yaml:"tiles"`     // the ledger as a transparency log over HTTP
	Sinks     []Sink    `yaml:"sinks"`     // where events are shipped to
	Policy    Policy    `yaml:"policy"`    //
	Approvals Approvals `yaml:"approvals"` //
	Exchange  Exchange  `yaml:"exchange"`  //
	Limits    Limits    `yaml:"limits"`    //
	Sandbox   Sandbox   `yaml:"sandbox"`   //
	Doors     Doors     `yaml:"doors"`     //
	Telemetry Telemetry `yaml:"telemetry"` //
	Autonomy  Autonomy  `yaml:"autonomy"`  // what the autonomy levels of task files mean
	Log       Log       `yaml:"log"`       //

	// egress is how requests leave, where a test stands in for the internet; zero
	// means the host's resolver and network. What vault.yaml says comes on top.
	egress egress.Config
	// jwks fetches key sets where a test stands in for an issuer; nil means the network.
	jwks *http.Client
}

// Listen says where the daemon can be reached.
type Listen struct {
	HTTP   string    `yaml:"http"`   // loopback host:port; "" means 127.0.0.1:7700, off means none
	Admin  string    `yaml:"admin"`  // unix, or the path of the socket; "" means unix
	Bearer bool      `yaml:"bearer"` // accept capabilities that nothing binds, on loopback; every record says so
	TLS    ListenTLS `yaml:"tls"`
}

// ListenTLS is a listener for agents on other hosts. The zero ListenTLS is none.
type ListenTLS struct {
	Address     string `yaml:"address"`     // host:port; "" means no such listener
	Certificate string `yaml:"certificate"` // PEM file; its names are the only Host values that are served
	Key         string `yaml:"key"`         // PEM file
	Clients     string `yaml:"clients"`     // SPIFFE trust bundle of domain, for clients with an X.509-SVID; "" means that none may show one
}

// Policy names the operator's bundles and hooks. None means that the capability
// alone decides.
type Policy struct {
	Keys    map[string]PolicyKey `yaml:"keys"` // that sign bundles, by id
	Bundles []Bundle             `yaml:"bundles"`
	Hooks   []Hook               `yaml:"hooks"`
}

// A PolicyKey is a public key that signs bundles.
type PolicyKey struct {
	Algorithm string `yaml:"algorithm"` // ES256, RS256, PS256 or EdDSA
	File      string `yaml:"file"`      // PEM, relative to vault.yaml
}

// A Bundle is a directory of Rego files, or an archive as opa build writes it. It is
// signed, or says that it is not.
type Bundle struct {
	Name     string  `yaml:"name"`     // for messages; "" means its path
	Dir      string  `yaml:"dir"`      // relative to vault.yaml
	File     string  `yaml:"file"`     // .tar.gz, relative to vault.yaml
	Unsigned bool    `yaml:"unsigned"` // accept the bundle as it stands
	Signing  Signing `yaml:"signing"`  // the key that must have signed it
}

// Signing names a key of [Policy.Keys].
type Signing struct {
	KeyID string `yaml:"keyid"`
}

// A Hook wires a rule to calls, or to another moment.
type Hook struct {
	At       string        `yaml:"at"`       // tool.call, tool.result, agent.admit, token.mint, token.delegate, approval.resolve, egress.connect, session.end
	Tools    []string      `yaml:"tools"`    // globs of server.tool; empty means all
	Kinds    []string      `yaml:"kinds"`    // of call: tool, resource, egress, …; empty means all
	Risk     string        `yaml:"risk"`     // least risk: low, medium, high; "" means all
	Engine   string        `yaml:"engine"`   // rego, cel, http; "" means rego
	Query    string        `yaml:"query"`    // rego: data.vault.toolcall.decision
	Expr     string        `yaml:"expr"`     // cel: an expression over input
	URL      string        `yaml:"url"`      // http: an AuthZEN evaluation endpoint
	Mode     string        `yaml:"mode"`     // enforce, shadow, off; "" means enforce
	OnError  string        `yaml:"on_error"` // deny; there is no other value
	Deadline time.Duration `yaml:"deadline"` // zero means 250 ms
	Steps    int           `yaml:"steps"`    // rego: expressions evaluated at most; zero means 200000
}

// Approvals says who answers questions and how long they may take.
type Approvals struct {
	Groups  map[string][]string `yaml:"groups"`  // group → approvers: key:NAME; default, flow and policy are every approver unless listed, any other group not listed is nobody
	Timeout time.Duration       `yaml:"timeout"` // life of a question; zero means 10m
	Wait    time.Duration       `yaml:"wait"`    // how long a call waits before it returns pending; zero means 25s
}

// Limits bound what one call may cost.
type Limits struct {
	Call      time.Duration `yaml:"call"`      // an upstream's time; zero means 60s
	Result    int           `yaml:"result"`    // bytes of one result; zero means 8388608
	InFlight  int           `yaml:"in_flight"` // calls of one task at once; zero means 256
	Memory    int64         `yaml:"memory"`    // bytes of one server process; zero means 1073741824
	Processes int           `yaml:"processes"` // of one server; zero means 64
}

// Sandbox says what isolation is demanded of everything this daemon starts.
type Sandbox struct {
	MinGrade string `yaml:"min_grade"` // A, B, C, D or none; "" means B
}

// Doors let other gateways ask for decisions.
type Doors struct {
	AuthZEN        bool   `yaml:"authzen"`         // serve /access/v1/evaluation(s) on the HTTP listener and the admin socket
	ExtAuthz       string `yaml:"ext_authz"`       // gRPC for Envoy: loopback host:port, or the absolute path of a Unix socket; "" means none
	TrustPrincipal bool   `yaml:"trust_principal"` // take the SPIFFE ID that Envoy authenticated for the caller's
}

// Log says what is logged.
type Log struct {
	Level string `yaml:"level"` // debug, info, warn, error; "" means info
	JSON  bool   `yaml:"json"`
}

// LoadConfig reads vault.yaml at path, strictly. An empty path, and a missing
// default file, mean the embedded defaults. PVAULT_DATA, PVAULT_LISTEN_HTTP,
// PVAULT_LISTEN_BEARER and PVAULT_LOG_LEVEL override what the file says.
func LoadConfig(path string, getenv func(string) string) (Config, error) {
	var c Config
	if path != "" {
		b, err := readConfig(path)
		if err != nil {
			return Config{}, err
		}
		if c, err = ParseConfig(b); err != nil {
			return Config{}, fmt.Errorf("%s: %w", path, err)
		}
		dir, err := filepath.Abs(filepath.Dir(path))
		if err != nil {
			return Config{}, fmt.Errorf("%s: %w", path, err)
		}
		for id, key := range c.Policy.Keys {
			if !filepath.IsAbs(key.File) {
				key.File = filepath.Join(dir, key.File)
				c.Policy.Keys[id] = key
			}
		}
		for _, p := range c.files() {
			if *p != "" && !filepath.IsAbs(*p) && !strings.Contains(*p, "://") {
				*p = filepath.Join(dir, *p)
			}
		}
	}
	if v := getenv("PVAULT_DATA"); v != "" {
		c.Data = v
	}
	if v := getenv("PVAULT_LISTEN_HTTP"); v != "" {
		c.Listen.HTTP = v
	}
	if v := getenv("PVAULT_LOG_LEVEL"); v != "" {
		c.Log.Level = v
	}
	switch v := getenv("PVAULT_LISTEN_BEARER"); v {
	case "":
	case "true", "false":
		c.Listen.Bearer = v == "true"
	default:
		return Config{}, fmt.Errorf("PVAULT_LISTEN_BEARER is %q: want true or false", v)
	}
	return c, c.Complete(getenv)
}

func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(b) > maxConfig {
		return nil, fmt.Errorf("read configuration: %s is larger than %d bytes", path, maxConfig)
	}
	return b, nil
}

// ParseConfig decodes vault.yaml. An unknown key is an error that names the line
// and the nearest key that exists.
func ParseConfig(b []byte) (Config, error) {
	var c Config
	if len(bytes.TrimSpace(b)) == 0 {
		return c, nil
	}
	if len(b) > maxConfig {
		return Config{}, fmt.Errorf("larger than %d bytes", maxConfig)
	}
	if line := aliasLine(b); line > 0 {
		return Config{}, fmt.Errorf("line %d: anchors and aliases are not used here", line)
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil {
		return Config{}, explain(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("more than one document")
	}
	return c, nil
}

// aliasLine returns the line of the first anchor or alias, or 0. They have no use
// in this file and can expand without bound.
func aliasLine(b []byte) int {
	var doc yaml.Node
	if yaml.Unmarshal(b, &doc) != nil {
		return 0 // the decoder will say why
	}
	var find func(n *yaml.Node) int
	find = func(n *yaml.Node) int {
		if n.Kind == yaml.AliasNode || n.Anchor != "" {
			return n.Line
		}
		for _, c := range n.Content {
			if line := find(c); line > 0 {
				return line
			}
		}
		return 0
	}
	return find(&doc)
}

var unknownField = regexp.MustCompile(`line (\d+): field (\S+) not found in type daemon\.(\w+)`)

// explain adds to an unknown key the nearest one that exists.
func explain(err error) error {
	m := unknownField.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	hint := ""
	if keys := keysOf(m[3]); len(keys) > 0 {
		hint = "; known here: " + strings.Join(keys, ", ")
		if k := nearest(m[2], keys); k != "" {
			hint = fmt.Sprintf("; did you mean %q?", k)
		}
	}
	return fmt.Errorf("line %s: unknown key %q%s", m[1], m[2], hint)
}

// keysOf lists the keys of one of the structs of Config by its Go name.
func keysOf(name string) []string {
	for _, v := range []any{Config{}, Listen{}, Ledger{}, Policy{}, PolicyKey{}, Bundle{}, Signing{}, Hook{}, Approvals{}, Limits{}, Sandbox{}, Autonomy{}, Level{}, Doors{}, Tiles{}, TilesReader{}, Log{}, ListenTLS{}, Exchange{}, TokenIssuer{}, AATIssuer{}, ExchangeGrant{}, Sink{}, Telemetry{}, MetricsListener{}, Traces{}} {
		t := reflect.TypeOf(v)
		if t.Name() != name {
			continue
		}
		var keys []string
		for i := range t.NumField() {
			if f := t.Field(i); f.IsExported() {
				keys = append(keys, f.Tag.Get("yaml"))
			}
		}
		return keys
	}
	return nil
}

// nearest returns the key with the smallest edit distance to s, if it is small.
func nearest(s string, keys []string) string {
	best, least := "", 3
	for _, k := range keys {
		if d := distance(s, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two short words.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// Complete fills in the defaults and refuses what cannot be enforced.
func (c *Config) Complete(getenv func(string) string) error {
	if c.Version == 0 {
		c.Version = 1
	}
	if c.Version != 1 {
		return fmt.Errorf("version %d: this pvault reads version 1", c.Version)
	}
	if c.Data == "" {
		base := getenv("XDG_DATA_HOME")
		if base == "" {
			home := getenv("HOME")
			if home == "" {
				return errors.New("no data directory: set data in vault.yaml, PVAULT_DATA or HOME")
			}
			base = filepath.Join(home, ".local", "share")
		}
		c.Data = filepath.Join(base, "pvault")
	}
	if rest, ok := strings.CutPrefix(c.Data, "~/"); ok {
		c.Data = filepath.Join(getenv("HOME"), rest)
	}
	c.Data = filepath.Clean(c.Data)
	setDefault(&c.Tenant, "default")
	setDefault(&c.Domain, "vault.internal")
	setDefault(&c.Listen.HTTP, "127.0.0.1:7700")
	setDefault(&c.Listen.Admin, "unix")
	setDefault(&c.Store, "sqlite")
	setDefault(&c.Sandbox.MinGrade, "B")
	setDefault(&c.Log.Level, "info")
	setDefault(&c.Approvals.Timeout, 10*time.Minute)
	setDefault(&c.Approvals.Wait, 25*time.Second)
	setDefault(&c.Anchor.Every, 5*time.Minute)
	setDefault(&c.Limits.Call, time.Minute)
	setDefault(&c.Limits.Result, 8<<20)
	setDefault(&c.Limits.InFlight, 256)
	setDefault(&c.Limits.Memory, 1<<30)
	setDefault(&c.Limits.Processes, 64)
	return c.check()
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

var (
	tenantForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	domainForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)
)

func (c *Config) check() error {
	switch {
	case !tenantForm.MatchString(c.Tenant):
		return fmt.Errorf("tenant %q: want lower-case letters, digits and hyphens", c.Tenant)
	case len(c.Domain) > 255 || !domainForm.MatchString(c.Domain):
		return fmt.Errorf("domain %q: want a SPIFFE trust domain", c.Domain)
	case c.Store != "sqlite" && !store.IsPostgres(c.Store):
		return errors.New("store: want sqlite or postgres://user@host/database") // not what was given: it may hold a password
	case !slices.Contains([]string{"A", "B", "C", "D", "none"}, c.Sandbox.MinGrade):
		return fmt.Errorf("sandbox.min_grade %q: want A, B, C, D or none", c.Sandbox.MinGrade)
	case !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level):
		return fmt.Errorf("log.level %q: want debug, info, warn or error", c.Log.Level)
	case c.Approvals.Timeout < time.Second || c.Approvals.Timeout > 7*24*time.Hour:
		return fmt.Errorf("approvals.timeout %v: want 1s to 168h", c.Approvals.Timeout)
	case c.Approvals.Wait < 0 || c.Approvals.Wait > time.Hour:
		return fmt.Errorf("approvals.wait %v: want up to 1h", c.Approvals.Wait)
	case !slices.Contains([]string{"", "none", "low", "medium", "high"}, c.Ledger.DurableOutcomes):
		return fmt.Errorf("ledger.durable_outcomes %q: want none, low, medium or high", c.Ledger.DurableOutcomes)
	case c.Limits.Call < 0 || c.Limits.Result < 1024 || c.Limits.InFlight < 1 || c.Limits.Memory < 16<<20 || c.Limits.Processes < 1:
		return errors.New("limits: a limit is below what works")
	}
	for i, b := range c.Policy.Bundles {
		if (b.Dir == "") == (b.File == "") {
			return fmt.Errorf("policy.bundles[%d]: want dir, a directory of rules, or file, an archive of opa build", i)
		}
		id := b.Signing.KeyID
		if _, ok := c.Policy.Keys[id]; id != "" && !ok {
			return fmt.Errorf("policy.bundles[%d]: no key %q in policy.keys", i, id)
		}
		if b.Unsigned == (id != "") {
			return fmt.Errorf("policy.bundles[%d]: name the key that signs it with signing: {keyid: …}, or say unsigned: true if you mean it", i)
		}
	}
	if c.Anchor.Every < time.Second || c.Anchor.Every > 24*time.Hour {
		return fmt.Errorf("anchor.every %v: want 1s to 24h", c.Anchor.Every)
	}
	if (c.Anchor.Rekor == "") != (c.Anchor.RekorKey == "") {
		return errors.New("anchor: rekor and rekor_key belong together: an answer that nobody can verify is no anchor")
	}
	if (c.Anchor.RekorV1 == "") != (c.Anchor.RekorV1Key == "") {
		return errors.New("anchor: rekor_v1 and rekor_v1_key belong together: an answer that nobody can verify is no anchor")
	}
	if (c.Anchor.TSA == "") != (c.Anchor.TSARoots == "") {
		return errors.New("anchor: tsa and tsa_roots belong together: a timestamp that nobody can verify is no anchor")
	}
	if c.Doors.TrustPrincipal && c.Doors.ExtAuthz == "" {
		return errors.New("doors.trust_principal: there is no doors.ext_authz whose word it could be")
	}
	if c.Doors.TrustPrincipal && !filepath.IsAbs(c.Doors.ExtAuthz) {
		return errors.New("doors.trust_principal: every program of the host can connect to a port and name a principal; make doors.ext_authz the absolute path of a socket")
	}
	if err := c.Exchange.complete(); err != nil {
		return err
	}
	if err := c.Tiles.check(); err != nil {
		return err
	}
	if _, err := c.Autonomy.levels(); err != nil {
		return err
	}
	if err := c.checkSinks(); err != nil {
		return err
	}
	if err := c.Telemetry.check(); err != nil {
		return err
	}
	return c.checkListen()
}

// files are the paths in c that are relative to vault.yaml.
func (c *Config) files() []*string {
	t, x := &c.Listen.TLS, &c.Exchange
	out := []*string{&t.Certificate, &t.Key, &t.Clients, &x.Bundle, &c.Anchor.Witnesses, &c.Anchor.TSARoots, &c.Anchor.RekorV1Key, &c.Telemetry.Metrics.Token, &c.Telemetry.Traces.Headers, &c.Telemetry.Traces.CA}
	for i := range x.Issuers {
		out = append(out, &x.Issuers[i].JWKS)
	}
	for i := range x.AAT {
		out = append(out, &x.AAT[i].JWKS)
	}
	for i := range x.Grants {
		out = append(out, &x.Grants[i].Task)
	}
	for i := range c.Sinks {
		out = append(out, &c.Sinks[i].File, &c.Sinks[i].Headers, &c.Sinks[i].CA)
	}
	for i := range c.Policy.Bundles {
		out = append(out, &c.Policy.Bundles[i].Dir, &c.Policy.Bundles[i].File)
	}
	return out
}

// checkListen refuses everything but loopback for the listener without TLS.
func (c *Config) checkListen() error {
	if c.Listen.Admin != "unix" && !filepath.IsAbs(c.Listen.Admin) {
		return fmt.Errorf("listen.admin %q: want unix or an absolute path", c.Listen.Admin)
	}
	if t := &c.Listen.TLS; *t != (ListenTLS{}) && (t.Address == "" || t.Certificate == "" || t.Key == "") {
		return errors.New("listen.tls: address, certificate and key are required")
	}
	if c.Listen.HTTP == "off" {
		return nil
	}
	if err := checkLoopback("listen.http", c.Listen.HTTP); err != nil {
		return fmt.Errorf("%w; other hosts reach listen.tls", err)
	}
	return nil
}

// checkLoopback accepts host:port where the host is this one.
func checkLoopback(key, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s %q: want host:port", key, address)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%s %q: without TLS only loopback", key, address)
	}
	return nil
}

// Socket returns the path of the admin socket.
func (c *Config) Socket() string {
	if c.Listen.Admin != "unix" {
		return c.Listen.Admin
	}
	return filepath.Join(c.Data, "admin.sock")
}
