// Command judges holds what Vault wrote against the programs of others. It is a
// module of its own, so that their dependencies are none of Vault's.
//
//	judges fsck URL ORIGIN KEY TOKEN    tessera's fsck on a tiled log
//	judges rekor ENTRY KEY              Sigstore's verifier on a Rekor v2 entry
//	judges rekor-v1 ENTRY KEY           Sigstore's verifier on a Rekor v1 entry
//	judges tsa TOKEN TEXT ROOTS         Sigstore's verifier on a timestamp of a text
package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"

	pb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/rekor-tiles/v2/pkg/verify"
	"github.com/sigstore/rekor/pkg/generated/models"
	verifyv1 "github.com/sigstore/rekor/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/timestamp-authority/v2/pkg/verification"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 5 && args[0] == "fsck":
		return check(ctx, args[1], args[2], args[3], args[4])
	case len(args) == 3 && args[0] == "rekor":
		return rekor(args[1], args[2])
	case len(args) == 3 && args[0] == "rekor-v1":
		return rekorV1(ctx, args[1], args[2])
	case len(args) == 4 && args[0] == "tsa":
		return tsa(args[1], args[2], args[3])
	}
	return errors.New("usage: judges fsck URL ORIGIN KEY TOKEN | judges rekor ENTRY KEY | judges rekor-v1 ENTRY KEY | judges tsa TOKEN TEXT ROOTS")
}

// check rebuilds the log at root from its entries and compares every tile.
func check(ctx context.Context, root, origin, key, token string) error {
	u, err := url.Parse(root)
	if err != nil {
		return err
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return err
	}
	log, err := client.NewHTTPFetcher(u, http.DefaultClient)
	if err != nil {
		return err
	}
	log.SetAuthorizationHeader("Bearer " + token)
	return fsck.New(origin, v, log, leaves, fsck.Opts{N: 2}).Check(ctx)
}

func leaves(b []byte) ([][]byte, error) {
	var bundle api.EntryBundle
	if err := bundle.UnmarshalText(b); err != nil {
		return nil, err
	}
	var out [][]byte
	for _, e := range bundle.Entries {
		out = append(out, rfc6962.DefaultHasher.HashLeaf(e))
	}
	return out, nil
}

func rekor(file, key string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var entry pb.TransparencyLogEntry
	if err := protojson.Unmarshal(b, &entry); err != nil {
		return err
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		return err
	}
	return verify.VerifyLogEntry(&entry, v)
}

func rekorV1(ctx context.Context, file, key string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var entry models.LogEntryAnon
	if err := json.Unmarshal(b, &entry); err != nil {
		return err
	}
	text, err := os.ReadFile(key)
	if err != nil {
		return err
	}
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(text)
	if err != nil {
		return err
	}
	v, err := signature.LoadVerifier(pub, crypto.SHA256)
	if err != nil {
		return err
	}
	return verifyv1.VerifyLogEntry(ctx, &entry, v)
}

func tsa(file, text, pinned string) error {
	token, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	stamped, err := os.ReadFile(text)
	if err != nil {
		return err
	}
	rest, err := os.ReadFile(pinned)
	if err != nil {
		return err
	}
	var roots []*x509.Certificate
	for b, rest := pem.Decode(rest); b != nil; b, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return err
		}
		roots = append(roots, c)
	}
	// It takes the whole answer of an authority: granted, and the token.
	answer, err := asn1.Marshal(struct {
		Status struct{ Status int }
		Token  asn1.RawValue
	}{Token: asn1.RawValue{FullBytes: token}})
	if err != nil {
		return err
	}
	_, err = verification.VerifyTimestampResponse(answer, bytes.NewReader(stamped), verification.VerifyOpts{Roots: roots})
	return err
}
