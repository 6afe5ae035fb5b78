package policy

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/util"
)

// A signed bundle is as opa sign leaves it: beside the files stands
// .signatures.json with one JWT, whose payload lists files with their digests. A
// file that counts and is not listed refuses the bundle, and so does a listed one
// that is missing or differs.
const signaturesFile = ".signatures.json"

// maxSignatures bounds .signatures.json: a JWT with a line for each file.
const maxSignatures = 1 << 20

// A Key verifies bundles.
type Key struct {
	ID        string // as the JWT names it, or as whoever configured it does
	Algorithm string // ES256, RS256, PS256 or EdDSA
	PEM       []byte // public key or certificate
}

// algorithms are those with a public key. A shared secret on the host that reads
// the rules could also write them.
var algorithms = []string{"ES256", "RS256", "PS256", "EdDSA"}

// hashes are those for which nobody can make two files alike.
var hashes = []opabundle.HashingAlgorithm{opabundle.SHA256, opabundle.SHA384, opabundle.SHA512}

var (
	// ErrSignature is in the chain of errors about a bundle that nobody, or somebody
	// else, has signed as it stands.
	ErrSignature = errors.New("bad signature of the bundle")
	errAlgorithm = errors.New("want ES256, RS256, PS256 or EdDSA")
)

// verify holds files, which are those of t that count, against the signature.
func verify(t source, files []file, key *Key) error {
	if !slices.Contains(algorithms, key.Algorithm) {
		return fmt.Errorf("key %s: algorithm %q: %w", key.ID, key.Algorithm, errAlgorithm)
	}
	raw, err := t.read(signaturesFile, maxSignatures)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it has no .signatures.json: sign it with pvault policy sign", ErrSignature)
	} else if err != nil {
		return err
	}
	var sc opabundle.SignaturesConfig
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&sc); err != nil {
		return fmt.Errorf("%w: .signatures.json: %w", ErrSignature, err)
	}
	if sc.Plugin != "" && sc.Plugin != "_default" { // opa build names its own
		return fmt.Errorf("%w: .signatures.json names a plugin; there are none here", ErrSignature)
	}
	config := opabundle.NewVerificationConfig(map[string]*opabundle.KeyConfig{
		key.ID: {Key: string(key.PEM), Algorithm: key.Algorithm},
	}, key.ID, "", nil)
	listed, err := opabundle.VerifyBundleSignature(sc, config)
	if err != nil {
		return fmt.Errorf("%w: key %s: %w: sign it again with pvault policy sign", ErrSignature, key.ID, err)
	}
	for name, info := range listed {
		if !slices.Contains(hashes, opabundle.HashingAlgorithm(info.Algorithm)) {
			return fmt.Errorf("%w: %s is listed by its %q: want SHA-256, SHA-384 or SHA-512", ErrSignature, name, info.Algorithm)
		}
	}
	counted := make(map[string][]byte, len(files))
	for i := range files {
		counted[files[i].path] = files[i].data
	}
	// What is listed and does not count for us, tests for example, still has to be
	// what was signed.
	for _, name := range slices.Sorted(maps.Keys(listed)) {
		if _, ok := counted[name]; ok {
			continue
		}
		if counted[name], err = t.read(name, maxBundleBytes); err != nil {
			return fmt.Errorf("%w: it lists %s: %w", ErrSignature, name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(counted)) {
		if err := opabundle.VerifyBundleFile(name, *bytes.NewBuffer(counted[name]), listed); err != nil {
			return fmt.Errorf("%w: %w: sign it again with pvault policy sign", ErrSignature, err)
		}
	}
	return nil
}

// Verify reads the bundle at a path, a directory or an archive, and holds it against
// key, without compiling it. It returns how many files count.
func Verify(at string, key Key) (int, error) {
	b := BundleAt(at)
	b.Key = &key
	files, err := b.read()
	return len(files), err
}

// Sign writes .signatures.json into the bundle at a path, a directory or an archive,
// over the files that count, and returns their names. key is the private one in PEM.
func Sign(at string, keyID, algorithm string, key []byte) ([]string, error) {
	if !slices.Contains(algorithms, algorithm) {
		return nil, fmt.Errorf("algorithm %q: %w", algorithm, errAlgorithm)
	}
	if !bytes.HasPrefix(key, []byte("-----BEGIN")) {
		return nil, errors.New("the key is not in PEM")
	}
	b := BundleAt(at).OnTrial() // a signature that stands there is about to be replaced
	t, err := b.open()
	if err != nil {
		return nil, err
	}
	defer t.Close()
	files, err := b.filesOf(t, false)
	if err != nil {
		return nil, err
	}
	names, raw, err := sign(files, keyID, algorithm, key)
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case *archive:
		whole, err := t.write(signaturesFile, raw)
		if err != nil {
			return nil, fmt.Errorf("write archive: %w", err)
		}
		return names, replace(at, whole)
	case dirTree:
		return names, t.root.WriteFile(signaturesFile, raw, 0o644)
	}
	return nil, fmt.Errorf("%s: neither a directory nor an archive", at)
}

// sign returns the names of files and the signature over them.
func sign(files []file, keyID, algorithm string, key []byte) (names []string, signature []byte, err error) {
	hasher, err := opabundle.NewSignatureHasher(opabundle.SHA256)
	if err != nil {
		return nil, nil, err
	}
	infos := make([]opabundle.FileInfo, len(files))
	for i := range files {
		var value any = files[i].data
		if opabundle.IsStructuredDoc(files[i].path) {
			if err := util.Unmarshal(files[i].data, &value); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", files[i].path, err)
			}
		}
		sum, err := hasher.HashFile(value)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", files[i].path, err)
		}
		names = append(names, files[i].path)
		infos[i] = opabundle.NewFile(files[i].path, hex.EncodeToString(sum), opabundle.SHA256.String())
	}
	token, err := opabundle.GenerateSignedToken(infos, opabundle.NewSigningConfig(string(key), algorithm, ""), keyID)
	if err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	raw, err := json.MarshalIndent(opabundle.SignaturesConfig{Signatures: []string{token}}, "", "  ")
	return names, append(raw, '\n'), err
}

// replace puts a file in the place of another at once: a daemon that reloads sees
// one of the two.
func replace(at string, content []byte) error {
	at, err := filepath.EvalSymlinks(at)
	if err != nil {
		return err
	}
	old, err := os.Stat(at)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(at), ".pvault-sign-")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(old.Mode().Perm()), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), at)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
