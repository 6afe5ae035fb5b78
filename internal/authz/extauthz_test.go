package authz

import (
	"context"
	"testing"

	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/pilox/vault"
)

// FuzzCheck has Envoy send anything: no check is a yes before it was decided on.
func FuzzCheck(f *testing.F) {
	for _, h := range []*auth.AttributeContext_HttpRequest{
		nil,
		{Scheme: "https", Method: "GET", Host: "h.example", Path: "/", Headers: map[string]string{"authorization": "Bearer vc1.x"}},
		{Scheme: "https", Method: "POST", Host: "[::1]:443", Path: "/", Body: "{}", Size: 2, Headers: map[string]string{tokenHeader: "vc1.x", "content-length": "2"}},
	} {
		raw, err := proto.Marshal(&auth.CheckRequest{Attributes: &auth.AttributeContext{Request: &auth.AttributeContext_Request{Http: h}}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r auth.CheckRequest
		if proto.Unmarshal(raw, &r) != nil {
			t.Skip()
		}
		asked, refused := 0, 0
		e := &envoy{doors: New(Config{Refuse: func(_ context.Context, c *vault.Call, d *vault.Denial) *vault.Denial {
			refused++
			return d
		}, Decide: func(_ context.Context, c *vault.Call) (vault.Result, error) {
			asked++
			if c.Kind != vault.KindEgress || len(c.Credential.Chain) == 0 {
				t.Errorf("decided on %+v", c)
			}
			return vault.Result{}, nil
		}})}
		res, err := e.Check(t.Context(), &r)
		if err != nil || codes.Code(res.GetStatus().GetCode()) == codes.OK && asked != 1 {
			t.Errorf("%v, %v after %d decisions", res, err, asked)
		}
		if asked+refused != 1 {
			t.Errorf("%d decisions and %d refusals are on record", asked, refused)
		}
	})
}
