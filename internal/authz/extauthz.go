package authz

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/pilox/vault"
	"github.com/pilox/vault/capability"
)

// tokenHeader carries the capability where Authorization is the upstream's. It is
// taken out of the request that goes on.
const tokenHeader = "x-vault-capability" //nolint:gosec // the name of a header

// denialHeader says in the answer to the client why, for programs.
const denialHeader = "x-vault-denial"

// GRPC returns the handler of Envoy's external authorization, to be served over
// HTTP/2. Who may connect is for
// the listener to say: it must be one that only Envoy reaches.
func (d *Doors) GRPC() http.Handler {
	s := grpc.NewServer(grpc.MaxRecvMsgSize(maxQuestion), grpc.MaxConcurrentStreams(256))
	auth.RegisterAuthorizationServer(s, &envoy{doors: d})
	return s
}

// An envoy answers ext_authz checks. The call is of kind egress: method and path
// with its query to a host over TLS, as the requests that Vault sends itself.
type envoy struct {
	auth.UnimplementedAuthorizationServer
	doors *Doors
}

var (
	errNoRequest = errors.New("the check has no HTTP request")
	errScheme    = errors.New("only requests over TLS have a capability: scheme is not https")
	errBody      = errors.New("the body is not text, or was not sent whole: configure with_request_body without allow_partial_message; a request without one says content-length: 0")
)

// Check decides one request.
func (e *envoy) Check(ctx context.Context, r *auth.CheckRequest) (*auth.CheckResponse, error) {
	call := newCall("ext_authz", vault.Credential{})
	if d := e.doors.decide(ctx, call, e.read(call, r)); d != nil {
		return refused(d), nil
	}
	return &auth.CheckResponse{
		Status: &rpc.Status{Code: int32(codes.OK)},
		HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{
			HeadersToRemove: []string{tokenHeader},
		}},
	}, nil
}

// refused is an answer that Envoy gives to the client.
func refused(d *vault.Denial) *auth.CheckResponse {
	status, code := typev3.StatusCode_Forbidden, codes.PermissionDenied
	if c := string(d.Reason.Code); strings.HasPrefix(c, "capability.m") || d.Reason.Code == vault.CodeProof {
		status, code = typev3.StatusCode_Unauthorized, codes.Unauthenticated // no capability, or nobody's
	}
	body, err := json.Marshal(map[string]*vault.Denial{vault.DenialKey: d})
	if err != nil {
		body = []byte("{}")
	}
	return &auth.CheckResponse{
		Status: &rpc.Status{Code: int32(code), Message: string(d.Reason.Code)},
		HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: &auth.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: status}, Body: string(body),
			Headers: []*core.HeaderValueOption{
				{Header: &core.HeaderValue{Key: "content-type", Value: "application/json"}},
				{Header: &core.HeaderValue{Key: denialHeader, Value: string(d.Reason.Code)}},
			},
		}},
	}
}

// read makes c the call that a check is about. Who asks comes first: what is wrong
// with the rest is then on record as theirs.
func (e *envoy) read(c *vault.Call, r *auth.CheckRequest) (err error) {
	h := r.GetAttributes().GetRequest().GetHttp()
	if h == nil {
		return vault.NewDenial(vault.CodeRequestMalformed, "", errNoRequest)
	}
	c.Kind = vault.KindEgress
	if c.Credential, err = e.credential(r, h); err != nil {
		return err
	}
	if h.GetScheme() != "https" {
		return vault.NewDenial(vault.CodeRequestMalformed, "", errScheme)
	}
	body, err := bodyOf(h)
	if err != nil {
		return err
	}
	args := map[string]any{"method": h.GetMethod(), "path": h.GetPath()}
	if body != "" {
		args["body"] = body
		if t := h.GetHeaders()["content-type"]; t != "" {
			args["content_type"] = t
		}
	}
	raw, err := json.Marshal(args)
	if err != nil {
		return vault.NewDenial(vault.CodeRequestMalformed, "", err)
	}
	if c.Args, err = vault.ParseArgs(raw); err != nil {
		return err
	}
	host, err := hostOf(h.GetHost())
	if err != nil {
		return err
	}
	if err := identify(c, h.GetId()); err != nil {
		return err
	}
	return e.doors.aim(c, host)
}

// bodyOf returns the body of a request, which has to be all of it: what is decided
// on is what goes on.
func bodyOf(h *auth.AttributeContext_HttpRequest) (string, error) {
	body := h.GetBody()
	if raw := h.GetRawBody(); len(raw) > 0 {
		body = string(raw)
	}
	carries := h.GetMethod() == http.MethodPost || h.GetMethod() == http.MethodPut || h.GetMethod() == http.MethodPatch
	length, declared := h.GetHeaders()["content-length"]
	// The size is what Envoy has received so far, nothing yet where it was not told to
	// wait for the body. So a request whose body is not here has to say that it has none.
	_, chunked := h.GetHeaders()["transfer-encoding"]
	switch {
	case !utf8.ValidString(body), // JSON would hold other bytes
		h.GetHeaders()["x-envoy-auth-partial-body"] == "true",
		h.GetSize() > int64(len(body)),
		declared && length != strconv.Itoa(len(body)),
		body == "" && (chunked || carries && !declared):
		return "", vault.NewDenial(vault.CodeRequestMalformed, "", errBody)
	}
	return body, nil
}

// hostOf returns the target of a request: its host in lower case, with a port if it
// is not the scheme's.
func hostOf(authority string) (string, error) {
	u, err := url.Parse("https://" + authority)
	if err != nil || u.Host != authority || u.User != nil {
		return "", vault.NewDenial(vault.CodeRequestMalformed, "", errTarget)
	}
	return strings.ToLower(strings.TrimSuffix(authority, ":443")), nil
}

// credential takes the token from a header of its own or from Authorization. What
// binds it is the SPIFFE ID that Envoy authenticated, where that is trusted.
func (e *envoy) credential(r *auth.CheckRequest, h *auth.AttributeContext_HttpRequest) (vault.Credential, error) {
	header := http.Header{}
	for k, v := range h.GetHeaders() {
		header.Add(k, v)
	}
	token := header.Get(tokenHeader)
	if token == "" {
		var ok bool
		if token, ok = strings.CutPrefix(header.Get("Authorization"), "Bearer "); !ok || !strings.HasPrefix(token, "vc1.") {
			return vault.Credential{}, vault.NewDenial(vault.CodeCapabilityMissing, "", nil)
		}
	}
	chain, err := capability.DecodeText(token)
	if err != nil {
		return vault.Credential{}, vault.NewDenial(vault.CodeCapabilityMalformed, "", err)
	}
	cred := vault.Credential{Chain: chain, Binding: vault.Binding{Bearer: e.doors.c.Bearer}}
	if p := r.GetAttributes().GetSource().GetPrincipal(); e.doors.c.TrustPrincipal && strings.HasPrefix(p, "spiffe://") {
		cred.Binding = vault.Binding{SPIFFE: p}
	}
	return cred, nil
}
