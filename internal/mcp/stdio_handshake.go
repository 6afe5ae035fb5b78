package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/pilox/vault"
)

// handshake finds out the era: the one of want, or the newest, and if the server
// does not know it the other one. again says that the process did not survive
// server/discover and that another should be asked with initialize alone.
func (c *stdioConn) handshake(ctx context.Context, want string) (again bool, err error) {
	if isLegacy(want) {
		err = c.initialize(ctx, want)
		var refused *RemoteError
		if !errors.As(err, &refused) {
			return false, err
		}
		ok, probeErr := c.discover(ctx)
		if ok {
			return false, nil
		}
		return false, errors.Join(err, probeErr)
	}
	if ok, err := c.discover(ctx); ok || err != nil {
		return false, err
	}
	if err = c.initialize(ctx, ""); err != nil && c.dead() && !brokeProtocol(err) {
		return true, nil
	}
	return false, err
}

// brokeProtocol reports whether the server wrote what it must not.
func brokeProtocol(err error) bool {
	d, ok := errors.AsType[*vault.Denial](err)
	return ok && (d.Reason.Code == vault.CodeUpstreamTooLarge || d.Reason.Code == vault.CodeUpstreamGarbage)
}

// discover reports whether the server speaks the era without sessions. An error
// object, silence and the end of the process all mean that it does not.
func (c *stdioConn) discover(ctx context.Context) (bool, error) {
	probeCtx, cancel := context.WithTimeout(ctx, c.probeTimeout)
	defer cancel()
	c.setEra(allVersions[0])
	result, err := c.call(probeCtx, methodDiscover, nil, requestMeta{}, nil)
	if err == nil {
		var spoken []string
		if spoken, err = versions(result); err != nil {
			return false, fmt.Errorf("server/discover: %w", err)
		}
		if slices.Contains(spoken, allVersions[0]) {
			c.helloResult = result
			return true, nil
		}
	}
	c.setEra("")
	if ctx.Err() != nil || brokeProtocol(err) {
		return false, err
	}
	return false, nil
}

// versions reads supportedVersions of a discovery.
func versions(result json.RawMessage) ([]string, error) {
	raw := member(result, "supportedVersions")
	if raw == nil {
		return nil, errMalformed
	}
	var out []string
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, errMalformed
	}
	return out, nil
}

// initialize opens a session of the earlier era.
func (c *stdioConn) initialize(ctx context.Context, want string) error {
	if !isLegacy(want) {
		want = legacyVersions[0]
	}
	b := appendQuoted([]byte(`{"protocolVersion":`), want)
	b = append(b, `,"capabilities":`...)
	b = append(append(b, c.opts.capabilities()...), `,"clientInfo":`...)
	b = append(append(b, c.opts.clientInfo()...), '}')
	result, err := c.call(ctx, methodInitialize, b, requestMeta{}, nil)
	if err != nil {
		return fmt.Errorf("initialize: %w", err)
	}
	version, ok := plainString(member(result, "protocolVersion"))
	if !ok || !isLegacy(version) {
		return fmt.Errorf("initialize: the server speaks version %q, which is not known", visible([]byte(version)))
	}
	c.helloResult = result
	c.setEra(version)
	if err := c.send(ctx, appendRequest(nil, "", noteInitialized, nil)); err != nil {
		return fmt.Errorf("initialized: %w", err)
	}
	return nil
}
