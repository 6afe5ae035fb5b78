// Package capability makes and checks the tokens that carry a task's authority.
//
// A capability is a chain of signed links. The first link, the root, is signed by
// a configured issuer and says everything the task may do. Every further link is
// signed by the holder of the link before it and can only restrict: a call must
// pass every link on its own, so what a longer chain allows, each of its prefixes
// allows as well, whatever the restriction is. Nothing in a link can be stripped
// by adding another.
//
// Start with [Mint] and [Attenuate] to make chains, [Parse], [Inspect] and
// [Verify] to read them without a daemon, and [Verifier] to check calls. A holder
// with a key proves possession with a [Session] or, one call at a time, with
// [SignCall].
//
// # Format
//
// A chain is a CBOR array of 1 to 16 links and at most 64 KiB. A link is an
// untagged COSE_Sign1 (RFC 9052, section 4.2) over a [Link] in deterministic CBOR
// (RFC 8949, section 4.2.1). The protected header holds alg (Ed25519, -19, or
// ES256, -7), typ "vault/link/v1" and, where an issuer signs, its kid; the
// unprotected header is empty; the external AAD is the typ. An unknown field,
// constraint, algorithm or header refuses the chain, and so does any encoding that
// this package would not have written.
//
//	link id   = SHA-256("vault/link/v1" ‖ protected ‖ payload)
//	parent    = SHA-256(COSE bytes of the link before)
//	chain key = SHA-256(chain bytes)
//
// The text form is "vc1." and the chain in base64url without padding. The keys of
// the CBOR maps are the numbers in the cbor tags of [Link] and the types it uses;
// testdata/vectors.json holds chains to accept and to refuse for other
// implementations.
//
// # What it does not do
//
// It keeps no counters: [Verifier.Verify] returns what a call would cost and the
// ledger debits it. It keeps no revocations beyond the process: [Revocations] is
// filled again from the ledger. It does not ask people: a rule only names groups.
package capability

// Bounds on what a token can make a verifier do. A task needs far less; a chain
// at every bound costs under two milliseconds once and is then cached.
const (
	MaxLinks      = 16       // links of a chain
	MaxChainBytes = 64 << 10 // encoded chain; what fits an HTTP header elsewhere is smaller still
	maxText       = 4 << 10  // a string in a link: purpose, pattern, value
	maxInputs     = 32 << 10 // the user's own words
	maxName       = 256      // identifiers, and names of targets that are not URIs
	maxTargetName = 2048     // a resource URI
	maxKID        = 64       // issuer key id
	maxSet        = 1024     // values of one set, targets of one kind
	maxArgs       = 256      // named arguments of one rule or object
	maxTests      = 16       // constraints on one argument of one link
	maxNesting    = 8        // each and object inside each other
	maxSums       = 32       // sum budgets of one link
	maxCaveats    = 16       // caveats of one link, of either kind
	maxArgv       = 256      // elements of an argument vector
)

// textPrefix marks the text form of a chain and its version.
const textPrefix = "vc1."

// anyName as the name of a target grants every name of its server.
const anyName = "*"
