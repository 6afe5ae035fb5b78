package daemon

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/pilox/vault/capability"
	"github.com/pilox/vault/internal/aat"
	"github.com/pilox/vault/internal/oauth"
)

// An AATExporter says how a capability becomes an attenuating authorization token.
type AATExporter = aat.Exporter

// An AATMissingError lists what of a capability a token cannot say.
type AATMissingError = aat.MissingError

// ExportAAT returns a presentation object with a token that says what c says, and the
// JWK set of its signer, for those who are to trust it. It needs no daemon.
func ExportAAT(c capability.Chain, x AATExporter) (presentation, keys []byte, err error) {
	if x.Key == nil {
		return nil, nil, errors.New("no key")
	}
	pub, err := capability.KeyOf(x.Key.Public())
	if err != nil {
		return nil, nil, err
	}
	if keys, err = aat.MarshalKey(pub); err != nil {
		return nil, nil, err
	}
	presentation, err = aat.Export(c, x)
	return presentation, keys, err
}

// An AATImport asks a gateway to exchange a chain of tokens.
type AATImport struct {
	URL   string        // of the gateway: http://127.0.0.1:7700
	Chain []byte        // a presentation object
	Grant string        // name of the grant in exchange.grants
	Key   crypto.Signer // of the holder of the last token
}

// An AATImported is the capability that was given for a chain.
type AATImported struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// ErrExchangeRefused is in the chain of errors that a gateway answered with.
var ErrExchangeRefused = errors.New("the gateway refuses")

const importTime = 10 * time.Second

// ImportAAT exchanges a chain at the token endpoint of a gateway (RFC 8693), with a DPoP
// proof of the key that its last token is bound to.
func ImportAAT(ctx context.Context, x AATImport) (AATImported, error) {
	holder, err := aat.Holder(x.Chain)
	if err != nil {
		return AATImported{}, err
	}
	if pub, err := capability.KeyOf(x.Key.Public()); err != nil || pub != holder {
		return AATImported{}, errors.New("the key is not the one that the last token is bound to (cnf)")
	}
	form := url.Values{
		"grant_type": {oauth.GrantType}, "subject_token": {string(x.Chain)}, "subject_token_type": {oauth.TypeAAT}, "audience": {x.Grant},
	}.Encode()
	to := strings.TrimSuffix(x.URL, "/") + "/token"
	client := &http.Client{
		Timeout:       importTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("redirects are not followed") },
	}
	defer client.CloseIdleConnections()
	nonce := ""
	for range 2 { // the first answer brings the nonce
		proof, err := oauth.SignProof(x.Key, http.MethodPost, to, nonce, "", time.Now())
		if err != nil {
			return AATImported{}, err
		}
		token, e, fresh, err := askToken(ctx, client, to, form, proof)
		if err != nil {
			return AATImported{}, err
		}
		if e == nil {
			return token, nil
		}
		if e.Code != oauth.UseNonce || fresh == "" || fresh == nonce {
			return AATImported{}, fmt.Errorf("%w: %s: %s", ErrExchangeRefused, e.Code, e.Description)
		}
		nonce = fresh
	}
	return AATImported{}, fmt.Errorf("%w: it asks for another nonce each time", ErrExchangeRefused)
}

// askToken makes one token request. A nil error with a nil *oauth.Error is success.
func askToken(ctx context.Context, client *http.Client, to, form, proof string) (t AATImported, refused *oauth.Error, nonce string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, strings.NewReader(form))
	if err != nil {
		return t, nil, "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("DPoP", proof)
	res, err := client.Do(req)
	if err != nil {
		return t, nil, "", fmt.Errorf("reach the gateway: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return t, nil, "", fmt.Errorf("read answer: %w", err)
	}
	var answer struct {
		oauth.ExchangeAnswer
		oauth.Error
	}
	if json.Unmarshal(body, &answer) != nil || answer.Code == "" && answer.AccessToken == "" {
		return t, nil, "", fmt.Errorf("the gateway answers %s: it has no token endpoint, or exchange is not configured", res.Status)
	}
	if answer.Code != "" {
		return t, &answer.Error, res.Header.Get("Dpop-Nonce"), nil
	}
	t.Token, t.Expires = answer.AccessToken, time.Now().Add(time.Duration(answer.ExpiresIn)*time.Second)
	return t, nil, "", nil
}
